package iptables

import (
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
	"github.com/fairlead/fairlead/internal/instance"
)

func TestTheInstanceWithoutANameHasThePrefixOfThisPackage(t *testing.T) {
	if got := instance.ID(0).Prefix(); got != chainPrefix {
		t.Errorf("got %s, want %s", got, chainPrefix)
	}
}

// TestInstancesDoNotMeet lets three instances write the same Services to the same tables. None of
// them sees the rules of the others, and removing one does not change the rules of the others.
func TestInstancesDoNotMeet(t *testing.T) {
	for _, bpf := range []bool{true, false} {
		tables := &rulesim.Tables{Rules: rulesim.New(fwd.IPv4)}
		var all []backend.Backend
		var dumps []string
		for _, name := range []string{"", "two", "three"} {
			b := New(map[fwd.Family]FamilyOptions{fwd.IPv4: {Instance: instance.Of(name), Tables: tables, HairpinBPF: bpf}})
			if _, err := b.Observe(t.Context()); err != nil {
				t.Fatal(err)
			}
			var table fwd.Table
			b.Update(table.SetHeader(benchtest.Header()))
			for _, f := range benchtest.Fragments(benchtest.Size{Services: 30, Endpoints: 3}) {
				b.Update(table.Put(f))
			}
			if r, err := b.Apply(t.Context()); err != nil || r.Written < 30 || r.Deleted != 0 {
				t.Fatalf("instance %q wrote %+v, %v", name, r, err)
			}
			all, dumps = append(all, b), append(dumps, tables.Save())
		}
		for i, b := range all {
			if drifted, err := b.Observe(t.Context()); drifted != 0 || err != nil {
				t.Errorf("instance %d sees %d objects that others have changed, %v", i, drifted, err)
			}
			if r, err := b.Apply(t.Context()); r != (backend.Result{}) || err != nil {
				t.Errorf("instance %d writes again: %+v, %v", i, r, err)
			}
		}
		for i := len(all) - 1; i > 0; i-- {
			if err := all[i].Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := tables.Save(); got != dumps[i-1] {
				t.Errorf("after clean-up of instance %d there is\n%s, want\n%s", i, got, dumps[i-1])
			}
		}
	}
}

// TestRenderedNamesAreTheInstances checks that all names in the rules of a named instance are its
// own.
func TestRenderedNamesAreTheInstances(t *testing.T) {
	var table fwd.Table
	table.SetHeader(benchtest.Header())
	for _, f := range benchtest.Fragments(benchtest.Size{Services: 3, Endpoints: 3}) {
		table.Put(f)
	}
	text := make(map[instance.ID]string)
	for _, id := range []instance.ID{0, instance.Of("two")} {
		var b strings.Builder
		if err := Render(&b, fwd.IPv4, FamilyOptions{Instance: id, HairpinBPF: true}, &table); err != nil {
			t.Fatal(err)
		}
		text[id] = b.String()
	}
	named := text[instance.Of("two")]
	if strings.Contains(named, chainPrefix) || strings.ReplaceAll(named, instance.Of("two").Prefix(), chainPrefix) != text[0] {
		t.Errorf("the program of an instance is\n%s, want that of the other with its names:\n%s", named, text[0])
	}
}
