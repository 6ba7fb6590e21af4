package sysctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

func tree(t *testing.T, name, value string) FS {
	t.Helper()
	s := FS{Root: t.TempDir()}
	path := filepath.Join(s.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEnsure(t *testing.T) {
	tests := []struct {
		name, before, want string
		changed            bool
	}{
		{"right", "1\n", "1", false},
		{"wrong", "0\n", "1", true},
		{"longer before", "1000\n", "1", true},
		{"several numbers, right", "32768\t60999\n", "32768 60999", false},
		{"several numbers, wrong", "32768\t60999\n", "32768 60998", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tree(t, "net/x", tt.before)
			if changed, err := s.Ensure("net/x", tt.want); changed != tt.changed || err != nil {
				t.Errorf("got %v, %v; want %v", changed, err, tt.changed)
			}
			want := tt.want
			if !tt.changed {
				want = strings.TrimSpace(tt.before)
			}
			if got, err := s.Get("net/x"); got != want || err != nil {
				t.Errorf("now %q, %v; want %q", got, err, want)
			}
			if changed, err := s.Ensure("net/x", tt.want); changed || err != nil {
				t.Errorf("a second time: got %v, %v", changed, err)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	s := tree(t, "net/x", "a")
	for _, name := range []string{"net/none", "../x", "/etc/passwd", ""} {
		if _, err := s.Ensure(name, "1"); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
	_, err := s.Ensure("net/none", "1")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "net/none") || !strings.Contains(err.Error(), `"1"`) {
		t.Errorf("the error names not the file and the value: %v", err)
	}
	if err := s.Set("net/none", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Set created a parameter: %v", err)
	}
	if _, err := s.Int("net/x"); err == nil {
		t.Error("a is a number")
	}
	if n, err := tree(t, "n", "42\n").Int("n"); n != 42 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestKernel(t *testing.T) {
	hosttest.Netns(t)
	const name = "net/ipv4/conf/all/route_localnet"
	for i, want := range []bool{true, false} {
		if changed, err := (FS{}).Ensure(name, "1"); changed != want || err != nil {
			t.Errorf("time %d: got %v, %v", i+1, changed, err)
		}
	}
	if _, err := (FS{}).Ensure(name, "x"); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("got %v", err)
	}
}
