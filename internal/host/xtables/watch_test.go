package xtables

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// scriptedShapes returns one shape of table nat after another; 0 entries stand for a failed look.
type scriptedShapes struct{ entries []uint32 }

func (s *scriptedShapes) of([]string) (map[string]shape, error) {
	n := s.entries[0]
	s.entries = s.entries[1:]
	if n == 0 {
		return nil, errors.New("made to fail")
	}
	return map[string]shape{"nat": {entries: n}}, nil
}

func (s *scriptedShapes) Close() error { return nil }

// TestLookerTellsOthersWritesFromOurs checks which changes are reported. Each step is a look before
// one of our writes and a look after it.
func TestLookerTellsOthersWritesFromOurs(t *testing.T) {
	tests := []struct {
		name    string
		entries []uint32
		want    int
	}{
		{"nothing", []uint32{3, 3, 3, 3, 3}, 0},
		{"our write", []uint32{3, 3, 5, 5, 5}, 0},
		{"another's before ours", []uint32{3, 4, 6, 6, 6}, 1},
		{"another's after ours", []uint32{3, 3, 5, 4, 4}, 1},
		{"a look that fails hides nothing", []uint32{3, 3, 0, 3, 3}, 1},
		{"looks that fail", []uint32{3, 0, 0, 0, 0}, 0},
	}
	for _, tt := range tests {
		got := 0
		l := &looker{kernel: &scriptedShapes{tt.entries}, watched: []string{"nat"}, report: func(string) { got++ }}
		l.look()
		l.around(func() {})
		l.around(func() {})
		if got != tt.want {
			t.Errorf("%s: %d reports, want %d", tt.name, got, tt.want)
		}
	}
}

// TestKernelWatch checks that changes by others to our chains and to the rules that jump to them
// are reported, in both flavours and families. Our own writes are not reported, and in the nft
// flavour neither are changes by others to their own rules.
func TestKernelWatch(t *testing.T) {
	for _, flavour := range []Flavour{NFT, Legacy} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(flavour.command(ipv6, ""), func(t *testing.T) {
				need(t, flavour)
				hosttest.Netns(t)
				tables, err := New(flavour, ipv6)
				if err != nil {
					t.Fatal(err)
				}
				testWatch(t, tables)
			})
		}
	}
}

func testWatch(t *testing.T, tables *Tables) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const ours = "*nat\n:OURS-A - [0:0]\n:OURS-B - [0:0]\n-A PREROUTING -j OURS-A\n-A OURS-A -j OURS-B\n-A OURS-B -j ACCEPT\nCOMMIT\n"
	restore := func(input string) {
		t.Helper()
		if err := tables.Restore(ctx, []byte(input)); err != nil {
			t.Fatal(err)
		}
	}
	restore(ours)
	type change struct{ table, process string }
	heard := make(chan change, 100)
	if err := tables.Watch(ctx, []string{"filter", "nat"}, "OURS-", func(table, process string) { heard <- change{table, process} }); err != nil {
		t.Fatal(err)
	}
	other := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(tables.main, append([]string{"--wait", "5"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	expect := func(what string) {
		t.Helper()
		select {
		case c := <-heard:
			byName := c.table == "nat" && (tables.flavour == Legacy && c.process == "" || strings.HasPrefix(c.process, "iptables (pid ") ||
				strings.HasPrefix(c.process, "ip6tables (pid ") || strings.HasPrefix(c.process, "iptables-nft (pid ") || strings.HasPrefix(c.process, "ip6tables-nft (pid "))
			if !byName {
				t.Errorf("%s: heard %+v", what, c)
			}
		case <-time.After(hosttest.Patience):
			t.Fatalf("%s: not noticed", what)
		}
		restore("*nat\n-F PREROUTING\nCOMMIT\n" + ours)
	}
	restore(ours) // twice, so that there is a write of ours to hear of
	restore("*nat\n-F PREROUTING\nCOMMIT\n" + ours)
	other("-t", "nat", "-F", "OURS-B")
	expect("an emptied chain")
	other("-t", "nat", "-F")
	expect("an emptied table")
	other("-t", "nat", "-D", "PREROUTING", "-j", "OURS-A")
	expect("a jump that was removed")
	other("-t", "nat", "-A", "OURS-B", "-j", "RETURN")
	expect("a rule in a chain of ours")
	if tables.flavour == NFT {
		other("-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT")
		other("-t", "nat", "-D", "PREROUTING", "-j", "ACCEPT")
		other("-t", "nat", "-N", "THEIRS")
		// Had these been heard, they would come before this one.
		other("-t", "nat", "-F", "OURS-A")
		expect("another chain")
	}
	// A look at legacy tables follows each of our writes at once, so our write is not reported
	// later.
	var rest []change
	for len(heard) > 0 {
		rest = append(rest, <-heard)
	}
	if diff := cmp.Diff([]change(nil), rest, cmp.AllowUnexported(change{})); diff != "" {
		t.Errorf("heard more than there was: %s", diff)
	}
}
