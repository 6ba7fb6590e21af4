package fwd

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTextRoundTrip(t *testing.T) {
	for seed := range uint64(50) {
		g := newGenerator(seed)
		var table Table
		table.SetHeader(g.header())
		for range 12 {
			table.Put(g.fragment(g.owner()))
		}
		text := textOf(t, &table)
		again, err := ParseText(strings.NewReader(text))
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		if d := cmp.Diff(text, textOf(t, again)); d != "" {
			t.Fatalf("seed %d: written (-) and read and written again (+):\n%s", seed, d)
		}
		for f := range table.Services() {
			if got := again.Fragment(f.Owner); got == nil || !got.Equal(f) {
				t.Errorf("seed %d: %s is not the same after reading", seed, f.Owner)
			}
		}
		if h := again.Header(); !h.Equal(&table.header) {
			t.Errorf("seed %d: the header is not the same after reading", seed)
		}
	}
}

// TestTextGolden holds the form itself still: it is in bug reports and in other tests.
func TestTextGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	table, err := ParseText(strings.NewReader(string(want)))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(string(want)) {
		if !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	if d := cmp.Diff(strings.Join(lines, ""), textOf(t, table)); d != "" {
		t.Errorf("the file (-) and what is written for it (+):\n%s", d)
	}
}

func TestParseTextErrors(t *testing.T) {
	const (
		svc  = "service ns/a created=1 healthcheck=1\n"
		rej  = "all=reject,no-endpoints\n"
		fwd  = "all=forward,local,external-local\n"
		pool = "pool ns/a:p/tcp family=IPv4 scope=local endpoints="
	)
	tests := []struct{ name, text, want string }{
		{"unknown object", "route x\n", `line 1: "route"`},
		{"no service line", "\n# c\nfrontend 1.2.3.4:80/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "line 3: there is no line for service ns/a"},
		{"empty service", "service ns/a created=1\n", "line 1: service ns/a has nothing"},
		{"service twice", svc + svc, "line 2: a second line"},
		{"header twice", "header masqueradebit=1\nheader masqueradebit=1\n", "line 2: a second header"},
		{"mark bit", "header masqueradebit=32\n", "line 1: masqueradebit"},
		{"header without the bit", "header\n", `line 1: field "masqueradebit" is missing`},
		{"IPv6 loopback", "header masqueradebit=1 nodeports6=loopback\n", "line 1: nodeports6"},
		{"all and prefixes", "header masqueradebit=1 nodeports4=all,10.0.0.0/8\n", "line 1: nodeports4"},
		{"service CIDRs overlap", "header masqueradebit=1 servicecidrs4=10.0.0.0/8,10.1.0.0/16\n", "line 1: servicecidrs4"},
		{"service CIDR of the other family", "header masqueradebit=1 servicecidrs6=10.0.0.0/8\n", "line 1: servicecidrs6"},
		{"unallocated", "header masqueradebit=1 unallocated=reject\n", "line 1: unallocated"},
		{"unknown field", "service ns/a created=1 x=2\n", `line 1: unknown field "x"`},
		{"doubled field", "service ns/a created=1 created=2\n", `line 1: field "created" is there twice`},
		{"no value", "service ns/a created\n", `line 1: "created": want field=value`},
		{"quote left open", "service ns/\"a created=1\n", "line 1: service"},
		{"name unquoted", "service ns/a:b created=1\n", `line 1: service: ":b" follows`},
		{"port number", svc + "frontend 1.2.3.4:0/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "line 2: frontend"},
		{"protocol case", svc + "frontend 1.2.3.4:1/TCP kind=ClusterIP owner=ns/a:p/tcp " + rej, "line 2: frontend"},
		{"mapped address", svc + "frontend [::ffff:1.2.3.4]:1/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "line 2: frontend"},
		{"kind", svc + "frontend 1.2.3.4:1/tcp kind=Magic owner=ns/a:p/tcp " + rej, "line 2: kind"},
		{"two classes of three", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp outside=drop,no-endpoints pod=drop,no-endpoints\n", `line 2: field "host" is missing`},
		{"masqueraded reject", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp all=reject,masquerade,no-endpoints\n", "line 2: all"},
		{"forward without scope", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp all=forward,no-endpoints\n", "line 2: all"},
		{"reason", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp all=reject,mood\n", "line 2: all"},
		{"frontend twice", svc + strings.Repeat("frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp "+rej, 2), "line 3: the same Service has this frontend in line 2"},
		{"sources overlap", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp sources=10.0.0.0/8,10.1.0.0/16 " + rej, "line 2: sources"},
		{"sources not masked", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp sources=10.0.0.1/8 " + rej, "line 2: sources"},
		{"sources of the other family", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp sources=fd00::/8 " + rej, "line 2: sources"},
		{"pool missing", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp " + fwd, "line 2: there is no pool ns/a:p/tcp family=IPv4 scope=local"},
		{"pool unused", svc + pool + "10.0.0.1:1\n", "line 2: no route uses this pool"},
		{"pool twice", svc + pool + "10.0.0.1:1\n" + pool + "10.0.0.1:1\n", "line 3: the same pool is in line 2"},
		{"pool empty", svc + pool + "\n", "line 2: a pool has at least one endpoint"},
		{"endpoint twice", svc + pool + "10.0.0.1:1,10.0.0.1:1/local\n", "line 2: endpoints"},
		{"endpoint weight", svc + pool + "10.0.0.1:1/weight:0\n", "line 2: endpoints"},
		{"endpoint instance", svc + pool + "10.0.0.1:1/instance:0\n", "line 2: endpoints"},
		{"scheduler flags", svc + "pool ns/a:p/tcp family=IPv4 scope=local scheduler=mh schedulerflags=often endpoints=10.0.0.1:1\n", "line 2: schedulerflags"},
		{"leaving twice", "service ns/a created=1 leaving=10.0.0.1:1,10.0.0.1:1\n", "line 1: leaving"},
		{"endpoint family", svc + pool + "[fd00::1]:1\n", "line 2: endpoints"},
		{"family", svc + "pool ns/a:p/tcp family=Family(5) scope=local endpoints=10.0.0.1:1\n", "line 2: family"},
		{"endpoint flag", svc + pool + "10.0.0.1:1/fast\n", "line 2: endpoints"},
		{"affinity", svc + "pool ns/a:p/tcp family=IPv4 scope=local affinity=86401 endpoints=10.0.0.1:1\n", "line 2: affinity"},
		{"serving twice", svc + strings.Repeat("serving ns/a:p/udp family=IPv4 endpoints=\n", 2), "line 3: the same list is in line 2"},
		{"claim of one's own", svc + "claim 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "line 2: 1.2.3.4:1/tcp belongs to ns/a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseText(strings.NewReader(tt.text))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %s…", err, tt.want)
			}
		})
	}
}

type broken struct{}

var errBroken = errors.New("broken")

func (broken) Read([]byte) (int, error)  { return 0, errBroken }
func (broken) Write([]byte) (int, error) { return 0, errBroken }

func TestTextInputOutputErrors(t *testing.T) {
	if _, err := ParseText(broken{}); !errors.Is(err, errBroken) {
		t.Errorf("ParseText: %v", err)
	}
	if err := new(Table).WriteText(broken{}); !errors.Is(err, errBroken) {
		t.Errorf("WriteText: %v", err)
	}
}

func FuzzParseText(f *testing.F) {
	golden, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(golden))
	for seed := range uint64(4) {
		g := newGenerator(seed)
		var table Table
		table.SetHeader(g.header())
		for range 3 {
			table.Put(g.fragment(g.owner()))
		}
		f.Add(textOf(f, &table))
	}
	f.Add("service \"\"/ created=-1 healthcheck=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := ParseText(strings.NewReader(text))
		if err != nil {
			return
		}
		once := textOf(t, table)
		again, err := ParseText(strings.NewReader(once))
		if err != nil {
			t.Fatalf("what was written is refused: %v\n%s", err, once)
		}
		if d := cmp.Diff(once, textOf(t, again)); d != "" {
			t.Errorf("written once (-) and twice (+):\n%s", d)
		}
	})
}
