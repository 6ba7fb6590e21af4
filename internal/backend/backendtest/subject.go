package backendtest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Outcome is one thing that may become of the first packet of a connection.
type Outcome struct {
	Verdict fwd.Verdict
	// Endpoint and Masquerade count for forward; Masquerade must be false for pass. It is not
	// compared for a connection from elsewhere to an endpoint on one of the node's own addresses:
	// no packet of that leaves the node.
	Endpoint   netip.AddrPort
	Masquerade bool
	// Source is what the source is rewritten to; the zero Addr where that is the kernel's choice.
	Source netip.Addr
	// Reset says that a rejected packet is answered with a TCP reset, otherwise it is with an ICMP
	// error.
	Reset bool
	// Probability is above 0 and at most 1; negative where the backend cannot tell.
	Probability float64
}

func (o Outcome) String() string {
	s := o.Verdict.String()
	if o.Verdict == fwd.VerdictForward {
		s += " " + o.Endpoint.String()
	}
	if o.Reset {
		s += " reset"
	}
	if o.Masquerade {
		s += " masquerade"
	}
	if o.Source.IsValid() {
		s += " as " + o.Source.String()
	}
	return s + fmt.Sprintf(" p=%.7f", o.Probability)
}

// Subject is a backend under test with its kernel, real or simulated. The kernel's own addresses
// are the LocalAddrs of the header that the Subject is made with; the suite never changes these.
type Subject interface {
	// Backend returns the backends, both families; after Restart the new ones.
	Backend() backend.Families
	// Judge says what the programmed kernel does with the first packet of a connection: all that is
	// possible.
	Judge(p fwd.Packet) ([]Outcome, error)
	// Dump is a stable text of everything in the kernel that is ours.
	Dump() string
	// Writes is the number of write calls to the kernel so far, failed ones included.
	Writes() int
	// Fail makes the next n writes fail in a way that may pass; it replaces what an earlier call
	// asked for.
	Fail(n int)
	// FailReads makes the next n calls that read one family's kernel fail in a way that may pass;
	// it replaces what an earlier call asked for in that family.
	FailReads(f fwd.Family, n int)
	// Restart returns new backends on the same kernel, as a new process would have them.
	Restart() backend.Families
	// Foreign puts objects into the kernel that are not ours, of the kinds that ours could be
	// confused with.
	Foreign()
	// ForeignIntact describes how the foreign objects differ from what Foreign made.
	ForeignIntact() error
}

// ForeignRules are what Foreign puts into the tables of iptables, in the form that iptables-restore
// takes: kube-proxy's, some of them in no use, and the kubelet's.
const ForeignRules = "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j RETURN\n-I PREROUTING -j KUBE-SERVICES\nCOMMIT\n" +
	"*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n" +
	"*filter\n:KUBE-FIREWALL - [0:0]\n-A KUBE-FIREWALL -i nonesuch0 -j DROP\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n"

// Unchanged is the error of ForeignIntact, given the foreign objects as Foreign made them and as
// they are.
func Unchanged(made, are string) error {
	if made != are {
		return fmt.Errorf("foreign objects were\n%s\nand are\n%s", made, are)
	}
	return nil
}

// Drifter is a Subject whose kernel can be changed behind the backend's back.
type Drifter interface {
	// Drift removes, changes or adds something among our objects and says what it did.
	Drift(*rand.Rand) string
}

// Marked is a Subject that can judge packets that others have marked.
type Marked interface {
	// JudgeMarked is Judge for a packet that comes with the mark.
	JudgeMarked(p fwd.Packet, mark uint32) ([]Outcome, error)
}

// Rememberer is a Subject that can judge by session affinity.
type Rememberer interface {
	// JudgeAfter is Judge for p where ageSec seconds ago the connection of the earlier packet went
	// to chosen.
	JudgeAfter(p, earlier fwd.Packet, chosen netip.AddrPort, ageSec uint32) ([]Outcome, error)
}

// Finding is a Subject whose backend can tell which frontends the process before it left.
type Finding interface {
	// Finder returns that of the backend; after Restart that of the new one.
	Finder() backend.Finder
}

// Deviating is a Subject whose kernel cannot do all that a table asks. What it does instead is on
// the list of differences that its backend documents.
type Deviating interface {
	// Deviate returns what the backend is meant to do with the packet, given what Lookup says of
	// it. It may change the slice.
	Deviate(t *fwd.Table, p fwd.Packet, lookup []Outcome) []Outcome
}

// Run checks a backend. newSubject returns a Subject with an empty kernel; it is called often, and
// removes what it made by t.Cleanup.
func Run(t *testing.T, newSubject func(testing.TB, fwd.Header) Subject) {
	run(t, 1000, newSubject)
}

// RunBriefly is Run with few seeds, for a variant of a backend that passes Run.
func RunBriefly(t *testing.T, newSubject func(testing.TB, fwd.Header) Subject) {
	run(t, 2, newSubject)
}

func run(t *testing.T, most int, newSubject func(testing.TB, fwd.Header) Subject) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			seeds := min(c.seeds, most)
			if testing.Short() {
				seeds = min(seeds, 2)
			}
			for seed := range uint64(seeds) {
				t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
					err := c.run(seed, func(h fwd.Header) Subject { return newSubject(t, h) })
					switch {
					case err == errNotApplicable:
						t.Skip("the subject lacks what this check needs")
					case err != nil:
						t.Error(err)
					}
				})
			}
		})
	}
}
