package fieldtest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

type inner struct{ A, B int }

type sample struct {
	Name  string
	Flags [2]bool
	Addr  netip.Addr
	In    []inner
}

// recorder is a testing.TB that keeps what is reported to it.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func TestEqual(t *testing.T) {
	full := func(a, b *sample) bool {
		return a.Name == b.Name && a.Flags == b.Flags && a.Addr == b.Addr && slices.Equal(a.In, b.In)
	}
	tests := []struct {
		name    string
		equal   func(a, b *sample) bool
		ignored []string
		want    []string
	}{
		{"all fields", full, nil, nil},
		{"never equal", func(a, b *sample) bool { return false }, nil, []string{"fieldtest.sample: Equal does not hold for the same value"}},
		{"one element of an array", func(a, b *sample) bool {
			return a.Name == b.Name && a.Flags[0] == b.Flags[0] && a.Addr == b.Addr && slices.Equal(a.In, b.In)
		}, nil, []string{"fieldtest.sample: a change of .Flags[1]: Equal says true"}},
		{"a field of an element", func(a, b *sample) bool {
			return a.Name == b.Name && a.Flags == b.Flags && a.Addr == b.Addr &&
				slices.EqualFunc(a.In, b.In, func(x, y inner) bool { return x.A == y.A })
		}, nil, []string{"fieldtest.sample: a change of .In[0].B: Equal says true"}},
		{"an address", func(a, b *sample) bool { return a.Name == b.Name && a.Flags == b.Flags && slices.Equal(a.In, b.In) },
			[]string{".Addr"}, nil},
		{"ignored, but noticed", full, []string{".Addr"}, []string{"fieldtest.sample: a change of .Addr: Equal says false"}},
		{"ignored, but not there", full, []string{".Gone"}, []string{"fieldtest.sample has no .Gone"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r recorder
			Equal(&r, tt.equal, tt.ignored...)
			if !slices.Equal(r.errors, tt.want) {
				t.Errorf("got %q, want %q", r.errors, tt.want)
			}
		})
	}
}
