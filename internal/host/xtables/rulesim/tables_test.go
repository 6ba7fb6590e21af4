package rulesim

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// realities are inputs that must have the same effect in all flavours and in Tables. They run in
// order on the same tables.
var realities = []struct {
	name  string
	input string
	fails bool
}{
	{"chain and rule", "*nat\n:A - [0:0]\n-A A -d 10.0.0.1/32 -j ACCEPT\nCOMMIT\n", false},
	{"declaring flushes", "*nat\n:A - [0:0]\n-A A -d 10.0.0.2/32 -j ACCEPT\nCOMMIT\n", false},
	{"adding without declaring appends", "*nat\n-A A -d 10.0.0.3/32 -j ACCEPT\nCOMMIT\n", false},
	{"jump to an unknown chain", "*nat\n:B - [0:0]\n-A B -j NOPE\nCOMMIT\n", true},
	{"goto an unknown chain", "*nat\n:B - [0:0]\n-A B -g NOPE\nCOMMIT\n", true},
	{"jump before the declaration", "*nat\n:B - [0:0]\n-A B -j C\n:C - [0:0]\nCOMMIT\n", true},
	{"jump after the declaration", "*nat\n:B - [0:0]\n:C - [0:0]\n-A B -j C\nCOMMIT\n", false},
	{"jump to a chain that is there", "*nat\n-A A -j C\nCOMMIT\n", false},
	{"unknown chain", "*nat\n-A NOPE -j ACCEPT\nCOMMIT\n", true},
	{"remove an unknown chain", "*nat\n-X NOPE\nCOMMIT\n", true},
	{"remove a chain in use", "*nat\n-X C\nCOMMIT\n", true},
	{"remove a chain with rules", "*nat\n:D - [0:0]\n-A D -j ACCEPT\nCOMMIT\n*nat\n-X D\nCOMMIT\n", true},
	{"flush and remove", "*nat\n-F D\n-X D\nCOMMIT\n", false},
	{"declare and remove", "*nat\n:B - [0:0]\n-D A -j C\n:C - [0:0]\n-X B\n-X C\nCOMMIT\n", false},
	{"remove in the order of use", "*nat\n:E - [0:0]\n:F - [0:0]\n-A E -j F\nCOMMIT\n*nat\n:E - [0:0]\n:F - [0:0]\n-X F\n-X E\nCOMMIT\n", false},
	{"remove a kernel chain", "*nat\n-X OUTPUT\nCOMMIT\n", true},
	{"insert at the top", "*nat\n-I A -d 10.0.0.9/32 -j ACCEPT\nCOMMIT\n", false},
	{"insert at a number", "*nat\n-I A 2 -d 10.0.0.8/32 -j ACCEPT\nCOMMIT\n", false},
	{"insert at the end", "*nat\n:G - [0:0]\n-I G 1 -j ACCEPT\n-I G 2 -j RETURN\nCOMMIT\n", false},
	{"insert behind the end", "*nat\n-I G 4 -j ACCEPT\nCOMMIT\n", true},
	{"delete a rule", "*nat\n-D A -d 10.0.0.8/32 -j ACCEPT\nCOMMIT\n", false},
	{"delete a rule that is not there", "*nat\n-D A -d 10.0.0.8/32 -j ACCEPT\nCOMMIT\n", true},
	{"kernel chains are not flushed by declaring", "*nat\n-A OUTPUT -d 10.1.0.1/32 -j A\nCOMMIT\n*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", false},
	{"loop", "*nat\n:L1 - [0:0]\n:L2 - [0:0]\n-A L1 -j L2\n-A L2 -j L1\n-A OUTPUT -j L1\nCOMMIT\n", true},
	{"name of 28 bytes", "*nat\n:N234567890123456789012345678 - [0:0]\nCOMMIT\n", false},
	{"name of 29 bytes", "*nat\n:N2345678901234567890123456789 - [0:0]\nCOMMIT\n", true},
	{"no COMMIT", "*nat\n:P - [0:0]\n", true},
	{"a failing table leaves the one before", "*nat\n:Q - [0:0]\nCOMMIT\n*filter\n:R - [0:0]\n-A NOPE -j ACCEPT\nCOMMIT\n", true},
	{"a failing line leaves nothing of its table", "*nat\n:S - [0:0]\n-A S -j ACCEPT\n-A NOPE -j ACCEPT\nCOMMIT\n", true},
	{"DNAT in POSTROUTING", "*nat\n-A POSTROUTING -p udp -j DNAT --to-destination 10.2.0.1:53\nCOMMIT\n", true},
	{"DNAT reached from POSTROUTING", "*nat\n:T - [0:0]\n-A T -p udp -j DNAT --to-destination 10.2.0.1:53\n-A POSTROUTING -j T\nCOMMIT\n", true},
	{"DNAT reached from OUTPUT", "*nat\n:T - [0:0]\n-A T -p udp -j DNAT --to-destination 10.2.0.1:53\n-A OUTPUT -j T\nCOMMIT\n", false},
	{"DNAT in filter", "*filter\n:T - [0:0]\n-A T -p udp -j DNAT --to-destination 10.2.0.1:53\nCOMMIT\n*filter\n-A INPUT -j T\nCOMMIT\n", true},
	{"REJECT in filter", "*filter\n:U - [0:0]\n-A U -j REJECT --reject-with icmp-port-unreachable\n-A FORWARD -j U\nCOMMIT\n", false},
	{"MASQUERADE in POSTROUTING", "*nat\n:V - [0:0]\n-A V -j MASQUERADE\n-A POSTROUTING -j V\nCOMMIT\n", false},
	{"mark and comment", "*nat\n:W - [0:0]\n-A W -m comment --comment \"a -j NOPE \\\"b\\\" c\" -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n", false},
}

// TestTables checks Tables without a kernel, for the outcomes that TestRealities checks with one.
func TestTables(t *testing.T) {
	tables := &Tables{Rules: New(fwd.IPv4)}
	for _, r := range realities {
		err := tables.Restore(t.Context(), []byte(r.input))
		var re *xtables.RestoreError
		if r.fails != errors.As(err, &re) || r.fails && (re.Transient || re.Line == 0) {
			t.Errorf("%s: got %v, want error: %v", r.name, err, r.fails)
		}
	}
}

func TestTablesHook(t *testing.T) {
	tables := &Tables{Rules: New(fwd.IPv4)}
	before := tables.Save()
	hook := errors.New("hook")
	tables.Hook = func([]byte) error { return hook }
	if err := tables.Restore(t.Context(), []byte("*nat\n:A - [0:0]\nCOMMIT\n")); !errors.Is(err, hook) || tables.Save() != before {
		t.Errorf("got %v, with tables\n%s", err, tables.Save())
	}
}

func TestRealities(t *testing.T) {
	for _, fl := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
		t.Run(string(fl), func(t *testing.T) {
			if fl == xtables.NFT {
				hosttest.Need(t, hosttest.NFTables)
			}
			hosttest.Netns(t, "iptables-legacy", "iptables-nft")
			real, err := xtables.New(fl, false)
			if err != nil {
				t.Fatal(err)
			}
			fake := &Tables{Rules: New(fwd.IPv4)}
			if err := real.Restore(t.Context(), []byte("*nat\nCOMMIT\n*filter\nCOMMIT\n")); err != nil { // the fake has all tables
				t.Fatal(err)
			}
			for _, r := range realities {
				for name, x := range map[string]xtables.Interface{"real": real, "fake": fake} {
					err := x.Restore(t.Context(), []byte(r.input))
					var re *xtables.RestoreError
					switch {
					case r.fails != (err != nil):
						t.Errorf("%s: %s: got error %v, want error: %v", r.name, name, err, r.fails)
					case err != nil && !errors.As(err, &re):
						t.Errorf("%s: %s: %T is no RestoreError", r.name, name, err)
					case err != nil && (re.Transient || re.Line == 0):
						t.Errorf("%s: %s: transient or without a line: %+v", r.name, name, re)
					}
				}
				for _, table := range []string{"nat", "filter"} {
					want, got := saved(t, real, table), saved(t, fake, table)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("%s: the fake differs from the kernel in table %s (-kernel +fake):\n%s", r.name, table, diff)
					}
				}
			}
		})
	}
}

func saved(t *testing.T, x xtables.Interface, table string) xtables.Table {
	t.Helper()
	chains, err := x.Read(t.Context(), table)
	if err != nil || chains == nil {
		t.Fatalf("table %s: %v, %v", table, chains, err)
	}
	return chains
}
