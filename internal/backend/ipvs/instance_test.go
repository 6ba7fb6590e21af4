package ipvs

import (
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/instance"
)

func TestTheInstanceWithoutANameHasTheNamesOfThisPackage(t *testing.T) {
	if id := instance.ID(0); id.Prefix() != chainPrefix || id.Device() != Device || tagOf(id) != flagTag || divertTableOf(id) != divertTable {
		t.Errorf("prefix %s, device %s, tag %#x, routing table %d", id.Prefix(), id.Device(), tagOf(id), divertTableOf(id))
	}
}

func TestTagsOfInstances(t *testing.T) {
	for _, id := range []instance.ID{0, 1, instance.Of("two"), 1<<25 - 1} {
		if got, ours := ownerOf(tagOf(id) | hostipvs.Persistent | hostipvs.Fallback | hostipvs.SourcePort); got != id || !ours {
			t.Errorf("instance %d is read back as %d, %t", id, got, ours)
		}
	}
	if _, ours := ownerOf(hostipvs.Persistent | hostipvs.Fallback | hostipvs.SourcePort); ours {
		t.Error("a virtual server without a tag is taken for ours")
	}
}

// TestInstancesDoNotMeet has a second instance on the node of a bench, each with its own Service.
func TestInstancesDoNotMeet(t *testing.T) {
	one := newBench(t)
	two := newBench(t, func(o *FamilyOptions) {
		o.Instance = instance.Of("two")
		o.Servers, o.Sets, o.Tables = &one.servers, &one.sets, one.tables // the links of an owner are package link's business
	})
	everything := func() string { return one.tables.Save() + one.sets.Dump() + one.servers.Dump() }

	one.put(service{name: "a", vip: "10.96.0.10", nodePort: 30080, endpoints: []fwd.Endpoint{ep("10.244.1.5:80", 0)}})
	one.apply()
	alone := everything()
	two.put(service{name: "b", vip: "10.96.0.11", nodePort: 30081, endpoints: []fwd.Endpoint{ep("10.244.1.6:80", 0)}})
	two.apply()
	both := everything()
	if strings.Count(both, "10.96.0.11") == 0 || !strings.Contains(both, instance.Of("two").Prefix()+"SERVICES") {
		t.Fatalf("the second wrote nothing:\n%s", both)
	}
	for i, b := range []*bench{one, two} {
		if drifted, err := b.backend.Observe(t.Context()); drifted != 0 || err != nil {
			t.Errorf("instance %d sees %d objects that others have changed, %v", i, drifted, err)
		}
		b.restart()
		b.apply()
		if got := everything(); got != both {
			t.Errorf("a restart of instance %d made\n%s, want\n%s", i, got, both)
		}
	}

	// If both want the same virtual server, the first one gets it.
	two.put(service{name: "a", vip: "10.96.0.10", endpoints: []fwd.Endpoint{ep("10.244.1.7:80", 0)}})
	if _, err := two.backend.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "another instance") {
		t.Errorf("a virtual server of the other: %v", err)
	}
	if got := one.servers.Dump(); !strings.Contains(got, "10.244.1.5") || strings.Contains(got, "10.244.1.7") {
		t.Errorf("the other's virtual server was taken:\n%s", got)
	}

	if err := two.backend.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := everything(); got != alone {
		t.Errorf("after clean-up of the second there is\n%s, want\n%s", got, alone)
	}
}
