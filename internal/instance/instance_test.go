package instance

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// names are values of the label: the shortest, unusual and longest ones, and some that look like
// our own names.
func names() []string {
	out := []string{"", "a", "A", "two", "Two", "two.", "fairlead", "FAIRLEAD", "a.b_c-D", strings.Repeat("x", 63), strings.Repeat("x", 62) + "y", "kube-ipvs0", "9650"}
	for i := range 500 {
		out = append(out, fmt.Sprintf("proxy-%d", i))
	}
	return out
}

func TestNamesAreInjectiveAndWithinTheKernelsLimits(t *testing.T) {
	seen := make(map[string]string)
	for _, name := range names() {
		i := Of(name)
		for what, s := range map[string]string{"prefix": i.Prefix(), "table": i.Table(), "device": i.Device(), "routing": fmt.Sprint(i.Routing())} {
			if other, dup := seen[what+s]; dup {
				t.Errorf("%q and %q have the same %s %s", name, other, what, s)
			}
			seen[what+s] = name
		}
		if i >= 1<<25 {
			t.Errorf("%q: ID %d has more than 25 bits", name, i)
		}
		if got := len(i.Prefix()); got != len(unnamedPrefix) {
			t.Errorf("%q: prefix %s has %d bytes, want %d as the one without a name", name, i.Prefix(), got, len(unnamedPrefix))
		}
		if got := len(i.Device()); got > 15 {
			t.Errorf("%q: device %s has %d bytes, want at most 15", name, i.Device(), got)
		}
	}
}

// TestTheInstanceWithoutANameKeepsItsNames: the kernel of every node that was ever installed has
// these names.
func TestTheInstanceWithoutANameKeepsItsNames(t *testing.T) {
	i := Of("")
	if got, want := [4]any{i.Prefix(), i.Table(), i.Device(), i.Routing()}, [4]any{"FAIRLEAD-", "fairlead", "kube-ipvs0", uint32(0)}; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestNamesOfOneVersionAreThoseOfTheNext: an upgrade must find the names that the old version
// wrote.
func TestNamesOfOneVersionAreThoseOfTheNext(t *testing.T) {
	i := Of("two")
	if got, want := [4]any{i.Prefix(), i.Table(), i.Device(), i.Routing()}, [4]any{"FL-H7CMZ-", "fairlead-h7cmz", "kube-ipvs-h7cmz", uint32(41912729)}; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// ofRouting is the reverse of Routing.
func ofRouting(n uint32) (ID, bool) {
	i := ID(n &^ (1 << bits))
	return i, i.Routing() == n
}

func TestNamesAreReadBack(t *testing.T) {
	ids := []ID{0, 1, 1<<25 - 1}
	for _, name := range names() {
		ids = append(ids, Of(name))
	}
	for range 1000 {
		ids = append(ids, ID(rand.Uint32N(1<<25)))
	}
	for _, i := range ids {
		for what, back := range map[string]func() (ID, bool){
			"chain":   func() (ID, bool) { return OfObject(i.Prefix() + "SERVICES") },
			"table":   func() (ID, bool) { return OfTable(i.Table()) },
			"device":  func() (ID, bool) { return OfDevice(i.Device()) },
			"routing": func() (ID, bool) { return ofRouting(i.Routing()) },
		} {
			if got, ok := back(); got != i || !ok {
				t.Errorf("%s of %d: read back as %d, %t", what, i, got, ok)
			}
		}
	}
}

func TestNamesOfOthersAreNoInstances(t *testing.T) {
	for _, name := range []string{"", "KUBE-SERVICES", "FAIRLEAD", "FL-", "FL-ABCDE", "FL-ABCD-X", "FL-ABCDEF-X", "FL-abcde-X", "FL-ABC1E-X", "FL-AAAAA-X", "XFL-ABCDE-X"} {
		if i, ok := OfObject(name); ok {
			t.Errorf("chain %q is taken for one of instance %s", name, i)
		}
	}
	for _, name := range []string{"", "fairlead2", "fairlead-", "fairlead-abcd", "fairlead-ABCDE", "fairlead-aaaaa", "kube-proxy"} {
		if i, ok := OfTable(name); ok {
			t.Errorf("table %q is taken for one of instance %s", name, i)
		}
	}
	for _, name := range []string{"", "kube-ipvs", "kube-ipvs1", "kube-ipvs-", "kube-ipvs-ABCDE", "eth0"} {
		if i, ok := OfDevice(name); ok {
			t.Errorf("device %q is taken for one of instance %s", name, i)
		}
	}
}
