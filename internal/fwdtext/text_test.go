package fwdtext

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
)

func textOf(t testing.TB, table *fwd.Table) string {
	t.Helper()
	var b strings.Builder
	if err := Write(&b, table); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestTextGolden holds the form itself still: it is in bug reports and in other tests.
func TestTextGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	table, err := Read(strings.NewReader(string(want)))
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

func TestReadErrors(t *testing.T) {
	const (
		svc     = "service ns/a created=1 healthcheck=1\n"
		rej     = "all=reject,no-endpoints\n"
		forward = "all=forward,local,external-local\n"
		pool    = "pool ns/a:p/tcp family=IPv4 scope=local endpoints="
	)
	tests := []struct{ name, text, want string }{
		{"unknown object", "route x\n", "line 1: route x: want header, service"},
		{"no service line", "\n# c\nfrontend 1.2.3.4:80/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "line 3: frontend 1.2.3.4:80/tcp: there is no line for service ns/a before it"},
		{"empty service", "service ns/a created=1\n", "service ns/a: there is nothing in it"},
		{"service twice", svc + svc, "line 2: service ns/a: a second line"},
		{"header twice", "header masqueradebit=1\nheader masqueradebit=1\n", "line 2: a second header"},
		{"mark bit", "header masqueradebit=32\n", "header: masquerade bit 32"},
		{"header without the bit", "header\n", `line 1: field "masqueradebit" is missing`},
		{"IPv6 loopback", "header masqueradebit=1 nodeports6=loopback\n", "header: node ports of IPv6: loopback"},
		{"all and prefixes", "header masqueradebit=1 nodeports4=all,10.0.0.0/8\n", "header: node ports of IPv4: both"},
		{"service CIDRs overlap", "header masqueradebit=1 servicecidrs4=10.0.0.0/8,10.1.0.0/16\n", "header: service CIDRs: 10.1.0.0/16 overlaps"},
		{"service CIDR of the other family", "header masqueradebit=1 servicecidrs6=10.0.0.0/8\n", "header: service CIDRs: 10.0.0.0: want an IPv6 address"},
		{"unallocated", "header masqueradebit=1 unallocated=reject\n", "line 1: unallocated"},
		{"unknown field", "service ns/a created=1 x=2\n", "line 1: service ns/a: field \"x\" is unknown"},
		{"doubled field", "service ns/a created=1 created=2\n", "line 1: service ns/a: field \"created\" is unknown, or there twice"},
		{"no value", "service ns/a created\n", "line 1: service ns/a: \"created\": want field=value"},
		{"no slash", "service ns%2Fa created=1\n", `line 1: service ns%2Fa: "ns%2Fa": want namespace/name`},
		{"bad escape", "service n%zz/a created=1\n", "line 1: service n%zz/a: "},
		{"port number", svc + "frontend 1.2.3.4:0/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "service ns/a: frontend 1.2.3.4:0/tcp: port 0"},
		{"protocol case", svc + "frontend 1.2.3.4:1/TCP kind=ClusterIP owner=ns/a:p/tcp " + rej, "line 2: frontend"},
		{"mapped address", svc + "frontend [::ffff:1.2.3.4]:1/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "service ns/a: frontend [::ffff:1.2.3.4]:1/tcp: ::ffff:1.2.3.4: want an IPv6 address"},
		{"kind", svc + "frontend 1.2.3.4:1/tcp kind=Magic owner=ns/a:p/tcp " + rej, "line 2: frontend 1.2.3.4:1/tcp: kind"},
		{"two classes of three", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp outside=drop,no-endpoints pod=drop,no-endpoints\n", "line 2: frontend 1.2.3.4:1/tcp: field \"host\" is missing"},
		{"masqueraded reject", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp all=reject,masquerade,no-endpoints\n", "line 2: frontend 1.2.3.4:1/tcp: all: "},
		{"forward without scope", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp all=forward,no-endpoints\n", "line 2: frontend 1.2.3.4:1/tcp: all: "},
		{"reason", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp all=reject,mood\n", "line 2: frontend 1.2.3.4:1/tcp: all: "},
		{"frontend twice", svc + strings.Repeat("frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp "+rej, 2), "service ns/a: frontends: 1.2.3.4:1/tcp: not sorted, or there twice"},
		{"sources overlap", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp sources=10.0.0.0/8,10.1.0.0/16 " + rej, "service ns/a: frontend 1.2.3.4:1/tcp: sources: 10.1.0.0/16 overlaps"},
		{"sources not masked", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp sources=10.0.0.1/8 " + rej, "service ns/a: frontend 1.2.3.4:1/tcp: sources: 10.0.0.1/8 has bits"},
		{"sources of the other family", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp sources=fd00::/8 " + rej, "service ns/a: frontend 1.2.3.4:1/tcp: sources: fd00::: want an IPv4 address"},
		{"pool missing", svc + "frontend 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp " + forward, "service ns/a: frontend 1.2.3.4:1/tcp: there is no IPv4 pool ns/a:p/tcp of scope local"},
		{"pool unused", svc + pool + "10.0.0.1:1\n", "service ns/a: IPv4 pool ns/a:p/tcp of scope local: no route uses it"},
		{"pool twice", svc + pool + "10.0.0.1:1\n" + pool + "10.0.0.1:1\n", "pools: IPv4 pool ns/a:p/tcp of scope local: not sorted, or there twice"},
		{"pool empty", svc + pool + "\n", "service ns/a: IPv4 pool ns/a:p/tcp of scope local: there are no endpoints"},
		{"endpoint twice", svc + pool + "10.0.0.1:1,10.0.0.1:1/local\n", "service ns/a: IPv4 pool ns/a:p/tcp of scope local: 10.0.0.1:1: not sorted, or there twice"},
		{"endpoint weight", svc + pool + "10.0.0.1:1/weight:0\n", "service ns/a: IPv4 pool ns/a:p/tcp of scope local: 10.0.0.1:1: weight 0"},
		{"endpoint instance", svc + pool + "10.0.0.1:1/instance:-1\n", "line 2: pool ns/a:p/tcp: endpoints: \"-1\""},
		{"scheduler flags", svc + "pool ns/a:p/tcp family=IPv4 scope=local scheduler=mh schedulerflags=often endpoints=10.0.0.1:1\n", "line 2: pool ns/a:p/tcp: schedulerflags"},
		{"leaving twice", "service ns/a created=1 leaving=10.0.0.1:1,10.0.0.1:1\n", "service ns/a: leaving: 10.0.0.1:1: not sorted, or there twice"},
		{"endpoint family", svc + pool + "[fd00::1]:1\n", "service ns/a: IPv4 pool ns/a:p/tcp of scope local: fd00::1: want an IPv4 address"},
		{"family", svc + "pool ns/a:p/tcp family=Family(5) scope=local endpoints=10.0.0.1:1\n", "line 2: pool ns/a:p/tcp: family"},
		{"endpoint flag", svc + pool + "10.0.0.1:1/fast\n", "line 2: pool ns/a:p/tcp: endpoints: \"fast\""},
		{"affinity", svc + "pool ns/a:p/tcp family=IPv4 scope=local affinity=86401 endpoints=10.0.0.1:1\n", "service ns/a: IPv4 pool ns/a:p/tcp of scope local: affinity of 86401"},
		{"serving twice", svc + strings.Repeat("serving ns/a:p/udp family=IPv4 endpoints=\n", 2), "service ns/a: serving: IPv4 pool ns/a:p/udp of scope cluster: not sorted"},
		{"claim of one's own", svc + "claim 1.2.3.4:1/tcp kind=ClusterIP owner=ns/a:p/tcp " + rej, "frontend 1.2.3.4:1/tcp of service ns/a belongs to ns/a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(strings.NewReader(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want …%s…", err, tt.want)
			}
		})
	}
}

type broken struct{}

var errBroken = errors.New("broken")

func (broken) Read([]byte) (int, error)  { return 0, errBroken }
func (broken) Write([]byte) (int, error) { return 0, errBroken }

func TestTextInputOutputErrors(t *testing.T) {
	if _, err := Read(broken{}); !errors.Is(err, errBroken) {
		t.Errorf("Read: %v", err)
	}
	if err := Write(broken{}, new(fwd.Table)); !errors.Is(err, errBroken) {
		t.Errorf("Write: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	golden, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(golden))
	f.Add("service / created=-1 healthcheck=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := Read(strings.NewReader(text))
		if err != nil {
			return
		}
		once := textOf(t, table)
		again, err := Read(strings.NewReader(once))
		if err != nil {
			t.Fatalf("what was written is refused: %v\n%s", err, once)
		}
		if d := cmp.Diff(once, textOf(t, again)); d != "" {
			t.Errorf("written once (-) and twice (+):\n%s", d)
		}
	})
}
