package guest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnviron(t *testing.T) {
	have := []string{"PATH=/bin", "HOME=/root", "LANG=C", "CI=true", "FAIRLEAD_X=1", "FAIRLEAD=2", "GOFLAGS=-v=1"}
	got := environ(have, []string{"GOFLAGS", "NOPE", "A=b=c", "HOME=/h"})
	want := []string{"PATH=/bin:/usr/sbin:/sbin", "HOME=/root", "CI=true", "FAIRLEAD_X=1", "GOFLAGS=-v=1", "A=b=c", "HOME=/h"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConsole(t *testing.T) {
	long := strings.Repeat("x\n", 3*tail)
	for _, tt := range []struct {
		name, before, after string
		mark                bool
		want                string
	}{
		{"no start", "a\r\nb\r\n", "", false, "kernel: a\nkernel: b\n"},
		{"only since the start", "a\n", "b\n", true, "kernel: b\n"},
		{"nothing since the start", "a\n", "", true, ""},
		{"the last lines", long, "end", false, strings.Repeat("kernel: x\n", tail-1) + "kernel: end\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c console
			_, _ = c.Write([]byte(tt.before))
			if tt.mark {
				c.mark()
			}
			_, _ = c.Write([]byte(tt.after))
			var got bytes.Buffer
			if c.print(&got); got.String() != tt.want {
				t.Errorf("got %q, want %q", got.String(), tt.want)
			}
		})
	}
}
