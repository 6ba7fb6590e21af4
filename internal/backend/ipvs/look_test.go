package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// TestLooks proves that changes of virtual servers and sets by others cause a hint at the next
// poll, that our writes cause one for a Read, and that connections cause none.
func TestLooks(t *testing.T) {
	b := newBench(t)
	b.put(service{name: "a", vip: "10.0.0.1", endpoints: []fwd.Endpoint{ep("10.1.0.1:80", 1), ep("10.1.0.2:80", 2)}})
	b.apply()
	var broken error
	sizes := func(ctx context.Context, prefix string) (map[string]uint32, error) {
		sets, err := b.sets.List(ctx, prefix)
		out := make(map[string]uint32)
		for _, s := range sets {
			out[s.Name] = uint32(len(s.Entries))
		}
		return out, errors.Join(err, broken)
	}
	hints := backend.NewHints()
	l := newLooker(&b.servers, sizes, b.backend.targets(), hints)
	server := hostipvs.VirtualServer{Protocol: 6, Addr: netip.MustParseAddrPort("10.0.0.1:80")}
	by := func(ops ...hostipvs.Op) func() {
		return func() {
			t.Helper()
			for _, err := range b.servers.Apply(t.Context(), ops) {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	weight := func(w uint32) hostipvs.Op {
		return hostipvs.Op{Verb: hostipvs.SetReal, Server: server, Real: hostipvs.RealServer{Addr: netip.MustParseAddrPort("10.1.0.1:80"), Weight: w}}
	}
	tests := []struct {
		name string
		do   func()
		want []string
	}{
		{"the first look", func() {}, nil},
		{"nothing", func() {}, nil},
		{"a weight", by(weight(7)), []string{"virtual servers"}},
		{"back again", by(weight(1)), []string{"virtual servers"}},
		{"another's virtual server", by(hostipvs.Op{Verb: hostipvs.AddServer, Server: hostipvs.VirtualServer{Protocol: 6, Addr: netip.MustParseAddrPort("10.9.9.9:80")}, Settings: hostipvs.Settings{Scheduler: "rr"}}), nil},
		{"an element", func() {
			set := ipset.Set{}
			sets, err := b.sets.List(t.Context(), setName(fwd.IPv4, setFrontends))
			if err != nil || len(sets) != 1 || len(sets[0].Entries) == 0 {
				t.Fatal(sets, err)
			}
			set = sets[0].Set
			if failed, err := b.sets.Apply(t.Context(), []ipset.Change{{Set: set, Entry: sets[0].Entries[0], Del: true}}); err != nil || len(failed) > 0 {
				t.Fatal(failed, err)
			}
		}, []string{"sets"}},
		{"our write", func() {
			b.put(service{name: "b", vip: "10.0.0.2", endpoints: []fwd.Endpoint{ep("10.1.0.3:80", 3)}})
			b.apply()
		}, []string{"virtual servers or sets"}},
		{"nothing after it", func() {}, nil},
		{"a look that fails", func() { broken = errors.New("made to fail") }, nil},
		{"and another", func() {}, nil},
		{"after that", func() { broken = nil }, []string{"virtual servers or sets"}},
		{"the virtual server", by(hostipvs.Op{Verb: hostipvs.DelServer, Server: server}), []string{"virtual servers"}},
	}
	for _, tt := range tests {
		tt.do()
		l.look(t.Context())
		var got []string
		for len(hints) > 0 {
			h := <-hints
			got = append(got, strings.TrimSpace(h.What))
			if h.Family != fwd.IPv4 {
				t.Errorf("%s: a hint of %s", tt.name, h.Family)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}
