package iptables

import (
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/fwd"
)

// TestRules compares the counts with the rules of a simulated kernel while Services are added, grow
// and are removed.
func TestRules(t *testing.T) {
	var table fwd.Table
	header := fwd.Header{MasqueradeBit: 14, NodePorts: [2]fwd.NodePortAddrs{{All: true}, {All: true}}}
	s := newSimulation(header, FamilyOptions{HairpinBPF: true, MaxChains: 3})
	b := s.mode
	step := func(name string, ch fwd.Changes) {
		t.Helper()
		b.Update(ch)
		if _, err := b.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		counts := b.Rules()
		if len(counts) != 4 {
			t.Fatalf("%s: %d counts, want one for each family and table", name, len(counts))
		}
		for _, c := range counts {
			want := strings.Count(string(s.tables[c.Family].Rules.Save(c.Table.String())), "-A ")
			if c.Total != want || c.Last > c.Total {
				t.Errorf("%s: %v %v: %d rules in all and %d in the last write, the kernel has %d", name, c.Family, c.Table, c.Total, c.Last, want)
			}
		}
	}
	h := table.SetHeader(header)
	h.Header = &header
	step("nothing", h)
	for i := range 40 {
		step("one more", table.Put(benchtest.Fragment(i, 3)))
	}
	all := b.Rules()
	step("it grows", table.Put(benchtest.Fragment(7, 9)))
	for i, c := range b.Rules() {
		if c.Family == fwd.IPv4 && c.Table == NAT && (c.Total <= all[i].Total || c.Last == 0 || c.Last >= c.Total/2) {
			t.Errorf("a Service grew: %+v, before %+v", c, all[i])
		}
	}
	for i := range 40 {
		step("one less", table.Remove(benchtest.Fragment(i, 0).Owner))
	}
}
