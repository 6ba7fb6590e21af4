package rulesim

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

var host = Host{Local: []netip.Addr{netip.MustParseAddr("192.168.7.10"), netip.MustParseAddr("fd00:7::10")}}

func packet(src, dst, iface string) fwd.Packet {
	return fwd.Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddrPort(dst), Proto: fwd.TCP, InInterface: iface}
}

// outside is a packet from another host to a Service.
var outside = packet("198.51.100.7", "10.96.0.1:80", "eth0")

// res returns a Result; endpoint "" means none.
func res(v fwd.Verdict, endpoint string, masq bool, p float64) Result {
	r := Result{Verdict: v, Masquerade: masq, Probability: p}
	if endpoint != "" {
		r.Endpoint = netip.MustParseAddrPort(endpoint)
	}
	return r
}

var (
	passes  = []Result{{Verdict: fwd.VerdictPass, Probability: 1}}
	drops   = []Result{{Verdict: fwd.VerdictDrop, Probability: 1}}
	rejects = []Result{{Verdict: fwd.VerdictReject, Probability: 1}}
)

func to(endpoint string) []Result { return []Result{res(fwd.VerdictForward, endpoint, false, 1)} }

const dnatA = " -j DNAT --to-destination 10.0.0.1:8080"
const dnatB = " -j DNAT --to-destination 10.0.0.2:8080"

func TestRun(t *testing.T) {
	nat := func(lines ...string) string { return section("nat", lines) }
	filter := func(lines ...string) string { return section("filter", lines) }
	mangle := func(lines ...string) string { return section("mangle", lines) }
	localOut := packet("192.168.7.10", "10.96.0.1:80", "")
	toSelf := packet("192.168.7.10", "192.168.7.10:80", "")
	toHost := packet("198.51.100.7", "192.168.7.10:80", "eth0")

	tests := []struct {
		name  string
		rules string
		p     fwd.Packet
		want  []Result
	}{
		{"no rules", "", outside, passes},
		{"dnat", nat("-A PREROUTING -p tcp" + dnatA), outside, to("10.0.0.1:8080")},
		{"dnat keeps the port", nat("-A PREROUTING -j DNAT --to-destination 10.0.0.1"), outside, to("10.0.0.1:80")},
		{"the first dnat decides", nat("-A PREROUTING -p tcp"+dnatA, "-A PREROUTING -p tcp"+dnatB), outside, to("10.0.0.1:8080")},
		{"accept ends the nat hook", nat("-A PREROUTING -j ACCEPT", "-A PREROUTING -p tcp"+dnatA), outside, passes},
		{"PREROUTING does not see what this host sends", nat("-A PREROUTING -p tcp" + dnatA), localOut, passes},
		{"OUTPUT sees what this host sends", nat("-A OUTPUT -p tcp" + dnatA), localOut, to("10.0.0.1:8080")},
		{"OUTPUT does not see others", nat("-A OUTPUT -p tcp" + dnatA), outside, passes},
		{"a packet to itself sees no PREROUTING of nat", nat("-A PREROUTING -p tcp" + dnatA), toSelf, passes},
		{"a packet to itself sees PREROUTING of mangle", mangle("-A PREROUTING -i lo -j DROP"), toSelf, drops},
		{"a packet to itself sees INPUT", filter("-A INPUT -i lo -j REJECT"), toSelf, rejects},
		{"a packet to itself sees nat POSTROUTING", nat("-A POSTROUTING -o lo -j MASQUERADE"), toSelf, []Result{res(fwd.VerdictPass, "", true, 1)}},
		{"a packet to itself is not forwarded", filter("-A FORWARD -j DROP"), toSelf, passes},

		{"return goes on in the caller", nat(":X - [0:0]", "-A X -j RETURN", "-A X -p tcp"+dnatA, "-A PREROUTING -j X", "-A PREROUTING -p tcp"+dnatB), outside, to("10.0.0.2:8080")},
		{"the end of a chain goes on in the caller", nat(":X - [0:0]", "-A PREROUTING -j X", "-A PREROUTING -p tcp"+dnatB), outside, to("10.0.0.2:8080")},
		{"return in a base chain is its policy", nat("-A PREROUTING -j RETURN", "-A PREROUTING -p tcp"+dnatA), outside, passes},
		{"return in a base chain is its policy DROP", filter(":FORWARD DROP [0:0]", "-A FORWARD -j RETURN", "-A FORWARD -j ACCEPT"), outside, drops},
		{"goto does not come back to its chain", nat(":X - [0:0]", ":Y - [0:0]", "-A X -g Y", "-A X -p tcp"+dnatA, "-A PREROUTING -j X", "-A PREROUTING -p tcp"+dnatB), outside, to("10.0.0.2:8080")},
		{"goto from a base chain ends in its policy", filter(":FORWARD DROP [0:0]", ":X - [0:0]", "-A FORWARD -g X", "-A FORWARD -j ACCEPT"), outside, drops},
		{"return after goto", nat(":X - [0:0]", ":Y - [0:0]", "-A Y -j RETURN", "-A X -g Y", "-A X -p tcp"+dnatA, "-A PREROUTING -j X", "-A PREROUTING -p tcp"+dnatB), outside, to("10.0.0.2:8080")},
		{"a rule without target goes on", nat("-A PREROUTING -d 10.96.0.1", "-A PREROUTING -p tcp"+dnatA), outside, to("10.0.0.1:8080")},

		{"filter FORWARD sees the new destination", nat("-A PREROUTING -p tcp"+dnatA) + filter("-A FORWARD -d 10.96.0.1 -j DROP"), outside, to("10.0.0.1:8080")},
		{"filter FORWARD drops the new destination", nat("-A PREROUTING -p tcp"+dnatA) + filter("-A FORWARD -p tcp -d 10.0.0.1 --dport 8080 -j DROP"), outside, drops},
		{"dnat to this host is delivered", nat("-A PREROUTING -p tcp -j DNAT --to-destination 192.168.7.10:1") + filter("-A INPUT -j REJECT", "-A FORWARD -j DROP"), outside, rejects},
		{"dnat away from this host is forwarded", nat("-A PREROUTING -p tcp"+dnatA) + filter("-A INPUT -j REJECT", "-A FORWARD -j DROP"), toHost, drops},
		{"OUTPUT dnat to this host is delivered", nat("-A OUTPUT -p tcp -j DNAT --to-destination 192.168.7.10:1") + filter("-A INPUT -j REJECT"), localOut, rejects},
		{"filter OUTPUT sees the new destination", nat("-A OUTPUT -p tcp"+dnatA) + filter("-A OUTPUT -d 10.0.0.1 -j REJECT"), localOut, rejects},
		{"delivery sees no POSTROUTING", nat("-A POSTROUTING -j MASQUERADE"), toHost, passes},
		{"drop wins over masquerade", nat("-A POSTROUTING -j MASQUERADE") + mangle("-A POSTROUTING -j DROP"), outside, drops},

		{"marks last through all hooks", nat("-A PREROUTING -j MARK --set-xmark 0x4000/0x4000", "-A PREROUTING -p tcp"+dnatA,
			"-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", "-A POSTROUTING -j MARK --set-xmark 0x4000/0x0", "-A POSTROUTING -m mark --mark 0 -j MASQUERADE"),
			outside, []Result{res(fwd.VerdictForward, "10.0.0.1:8080", true, 1)}},
		{"set-xmark clears the mask and flips the value", nat("-A PREROUTING -j MARK --set-xmark 0xff", "-A PREROUTING -j MARK --set-xmark 0x11/0x0f",
			"-A PREROUTING -p tcp -m mark --mark 0xe1"+dnatA), outside, to("10.0.0.1:8080")},
		{"mark mask", nat("-A PREROUTING -j MARK --set-xmark 0x30", "-A PREROUTING -p tcp -m mark --mark 0x10/0x10"+dnatA), outside, to("10.0.0.1:8080")},

		{"even choice", nat("-A PREROUTING -p tcp -m statistic --mode random --probability 0.5"+dnatB, "-A PREROUTING -p tcp"+dnatA), outside,
			[]Result{res(fwd.VerdictForward, "10.0.0.1:8080", false, 0.5), res(fwd.VerdictForward, "10.0.0.2:8080", false, 0.5)}},
		{"inverted chance", nat("-A PREROUTING -p tcp -m statistic --mode random ! --probability 0.25" + dnatA), outside,
			[]Result{res(fwd.VerdictPass, "", false, 0.25), res(fwd.VerdictForward, "10.0.0.1:8080", false, 0.75)}},
		{"chance 0 never", nat("-A PREROUTING -p tcp -m statistic --mode random --probability 0" + dnatA), outside, passes},
		{"chance 1 always", nat("-A PREROUTING -p tcp -m statistic --mode random --probability 1" + dnatA), outside, to("10.0.0.1:8080")},
		{"two chances in a rule", nat("-A PREROUTING -p tcp -m statistic --mode random --probability 0.5 -m statistic --mode random --probability 0.5" + dnatA), outside,
			[]Result{res(fwd.VerdictPass, "", false, 0.75), res(fwd.VerdictForward, "10.0.0.1:8080", false, 0.25)}},
		{"chance before another match", nat("-A PREROUTING -p tcp -m statistic --mode random --probability 0.5 -m mark --mark 1" + dnatA), outside, passes},
		{"ways that end alike are one", nat(":X - [0:0]", "-A X -p tcp"+dnatA, "-A PREROUTING -m statistic --mode random --probability 0.5 -j X", "-A PREROUTING -j X"), outside, to("10.0.0.1:8080")},

		{"-s", nat("-A PREROUTING -s 198.51.100.0/24 -p tcp" + dnatA), outside, to("10.0.0.1:8080")},
		{"! -s", nat("-A PREROUTING ! -s 198.51.100.0/24 -p tcp" + dnatA), outside, passes},
		{"-d", nat("-A PREROUTING -d 10.96.0.0/16 -p tcp" + dnatA), outside, to("10.0.0.1:8080")},
		{"! -d", nat("-A PREROUTING ! -d 10.96.0.1 -p tcp" + dnatA), outside, passes},
		{"-i", nat("-A PREROUTING -i eth0 -p tcp" + dnatA), outside, to("10.0.0.1:8080")},
		{"-i is not a prefix", nat("-A PREROUTING -i eth -p tcp" + dnatA), outside, passes},
		{"-i with +", nat("-A PREROUTING -i et+ -p tcp" + dnatA), outside, to("10.0.0.1:8080")},
		{"! -i with +", nat("-A PREROUTING ! -i et+ -p tcp" + dnatA), outside, passes},
		{"OUTPUT has no incoming interface", nat(":X - [0:0]", "-A OUTPUT -j X", "-A X -i eth0 -p tcp"+dnatA), localOut, passes},
		{"OUTPUT and ! -i", nat(":X - [0:0]", "-A OUTPUT -j X", "-A X ! -i eth0 -p tcp"+dnatA), localOut, to("10.0.0.1:8080")},
		{"-o lo elsewhere", filter("-A OUTPUT -o lo -j DROP"), localOut, passes},
		{"-p", nat("-A PREROUTING -p udp" + dnatA), outside, passes},
		{"! -p", nat("-A PREROUTING ! -p udp -j DNAT --to-destination 10.0.0.1"), outside, to("10.0.0.1:80")},
		{"--dport", nat("-A PREROUTING -p tcp --dport 81" + dnatA), outside, passes},
		{"--dport range", nat("-A PREROUTING -p tcp --dport 79:80" + dnatA), outside, to("10.0.0.1:8080")},
		{"! --dport", nat("-A PREROUTING -p tcp ! --dport 80" + dnatA), outside, passes},
		{"all conditions must hold", nat("-A PREROUTING -s 198.51.100.7 -d 10.96.0.2 -p tcp" + dnatA), outside, passes},

		{"ctstate NEW", nat("-A PREROUTING -p tcp -m conntrack --ctstate NEW" + dnatA), outside, to("10.0.0.1:8080")},
		{"ctstate INVALID", filter("-A FORWARD -m conntrack --ctstate INVALID,RELATED,ESTABLISHED -j DROP"), outside, passes},
		{"ctstate DNAT", nat("-A PREROUTING -p tcp"+dnatA) + filter("-A FORWARD -m conntrack --ctstate DNAT -j DROP"), outside, drops},
		{"ctstate not DNAT", nat("-A PREROUTING -p tcp"+dnatA) + filter("-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"), outside, to("10.0.0.1:8080")},
		{"ctstate DNAT needs a change", nat("-A PREROUTING -j DNAT --to-destination 10.96.0.1") + filter("-A FORWARD -m conntrack --ctstate DNAT -j DROP"), outside, to("10.96.0.1:80")},
		{"ctstate SNAT", nat("-A POSTROUTING -j MASQUERADE") + filter("-A INPUT -m conntrack --ctstate SNAT -j DROP"), toSelf, drops},

		{"dst-type LOCAL", nat("-A PREROUTING -p tcp -m addrtype --dst-type LOCAL" + dnatA), toHost, to("10.0.0.1:8080")},
		{"dst-type not LOCAL", nat("-A PREROUTING -p tcp -m addrtype ! --dst-type LOCAL" + dnatA), toHost, passes},
		{"dst-type of a stranger", nat("-A PREROUTING -p tcp -m addrtype --dst-type LOCAL" + dnatA), outside, passes},
		{"src-type LOCAL", nat("-A OUTPUT -p tcp -m addrtype --src-type LOCAL" + dnatA), localOut, to("10.0.0.1:8080")},
		{"loopback is LOCAL", nat("-A OUTPUT -p tcp -m addrtype --src-type LOCAL --dst-type LOCAL" + dnatA), packet("127.0.0.1", "127.0.0.9:1", ""), to("10.0.0.1:8080")},

		{"hairpin by bpf", nat("-A PREROUTING -p tcp -j DNAT --to-destination 198.51.100.7:1", `-A POSTROUTING -m bpf --bytecode "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0" -j MASQUERADE`),
			outside, []Result{res(fwd.VerdictForward, "198.51.100.7:1", true, 1)}},
		{"no hairpin by bpf", nat("-A PREROUTING -p tcp -j DNAT --to-destination 198.51.100.8:1", `-A POSTROUTING -m bpf --bytecode "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0" -j MASQUERADE`),
			outside, to("198.51.100.8:1")},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			rs, err := Parse(fwd.IPv4, tc.rules)
			if err != nil {
				t.Fatal(err)
			}
			got, err := rs.Run(host, tc.p)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, comparer...); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

var comparer = []cmp.Option{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateApprox(0, 1e-9), cmpopts.IgnoreFields(Result{}, "Trace", "Recent")}

func TestRunIPv6(t *testing.T) {
	rs, err := Parse(fwd.IPv6, section("nat", []string{
		"-A PREROUTING -d fd00:96::1 -p tcp --dport 80 -j DNAT --to-destination [fd00:244::7]:8080",
		"-A POSTROUTING " + xtables.SourceIsDestination(true) + " -j MASQUERADE"}))
	if err != nil {
		t.Fatal(err)
	}
	for src, masq := range map[string]bool{"fd00:244::7": true, "fd00:245::7": false} {
		got, err := rs.Run(host, packet(src, "[fd00:96::1]:80", "eth0"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]Result{res(fwd.VerdictForward, "[fd00:244::7]:8080", masq, 1)}, got, comparer...); diff != "" {
			t.Errorf("%s (-want +got):\n%s", src, diff)
		}
	}
	if _, err := rs.Run(host, outside); err == nil {
		t.Error("a packet of the other family: no error")
	}
}

func TestRunRefusesWhatIsNotSimulated(t *testing.T) {
	for name, rule := range map[string]string{
		"source port":          "-A POSTROUTING -p tcp --sport 1 -j ACCEPT",
		"outgoing interface":   "-A POSTROUTING -o eth0 -j ACCEPT",
		"outgoing wildcard":    "-A POSTROUTING -o l+ -j ACCEPT",
		"unknown packet bytes": `-A POSTROUTING -m bpf --bytecode "2,32 0 0 17,6 0 0 0" -j ACCEPT`,
	} {
		rs, err := Parse(fwd.IPv4, section("nat", []string{rule}))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := rs.Run(host, outside); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

func TestRecent(t *testing.T) {
	const affinity = "*nat\n:A - [0:0]\n:B - [0:0]\n" +
		"-A A -p tcp -m recent --set --name A" + dnatA + "\n" +
		"-A B -p tcp -m recent --set --name B" + dnatB + "\n" +
		"-A PREROUTING -m recent --rcheck --seconds 10 --reap --name A -j A\n" +
		"-A PREROUTING -m recent --rcheck --seconds 10 --reap --name B -j B\n" +
		"-A PREROUTING -m statistic --mode random --probability 0.5 -j A\n" +
		"-A PREROUTING -j B\nCOMMIT\n"
	one := func(rules ...string) string { return section("nat", rules) }
	state := func(list, addr string, age uint32) RecentState {
		return RecentState{list: {netip.MustParseAddr(addr): age}}
	}
	both := []Result{res(fwd.VerdictForward, "10.0.0.1:8080", false, 0.5), res(fwd.VerdictForward, "10.0.0.2:8080", false, 0.5)}
	both[0].Recent, both[1].Recent = []string{"A"}, []string{"B"}
	onlyB := []Result{both[1]}
	onlyB[0].Probability = 1
	recorded := func(rs []Result, lists ...string) []Result {
		out := append([]Result(nil), rs...)
		out[0].Recent = lists
		return out
	}
	tests := []struct {
		name   string
		rules  string
		recent RecentState
		want   []Result
	}{
		{"unknown client", affinity, nil, both},
		{"known client", affinity, state("B", "198.51.100.7", 9), onlyB},
		{"just in time", affinity, state("B", "198.51.100.7", 10), onlyB},
		{"too late", affinity, state("B", "198.51.100.7", 11), both},
		{"another client", affinity, state("B", "198.51.100.8", 1), both},
		{"a rule sees what an earlier one recorded", one("-A PREROUTING -m recent --set --name X", "-A PREROUTING -p tcp -m recent --rcheck --seconds 1 --name X"+dnatA), nil,
			recorded(to("10.0.0.1:8080"), "X")},
		{"lists are apart", one("-A PREROUTING -m recent --set --name X", "-A PREROUTING -p tcp -m recent --rcheck --name Y"+dnatA), nil, recorded(passes, "X")},
		{"! set never matches", one("-A PREROUTING -p tcp -m recent ! --set --name X" + dnatA), nil, recorded(passes, "X")},
		{"! rcheck", one("-A PREROUTING -p tcp -m recent ! --rcheck --name X" + dnatA), nil, to("10.0.0.1:8080")},
		{"update refreshes", one("-A PREROUTING -p tcp -m recent --update --name X" + dnatA), state("X", "198.51.100.7", 1000), recorded(to("10.0.0.1:8080"), "X")},
		{"update does not add", one("-A PREROUTING -p tcp -m recent --update --name X" + dnatA), nil, passes},
		{"mask", one("-A PREROUTING -p tcp -m recent --rcheck --name X --mask 255.255.255.0" + dnatA), state("X", "198.51.100.0", 1), to("10.0.0.1:8080")},
		{"a match that fails earlier records nothing", one("-A PREROUTING -p tcp -m mark --mark 1 -m recent --set --name X" + dnatA), nil, passes},
		{"chance before set records half of the time", one("-A PREROUTING -m statistic --mode random --probability 0.5 -m recent --set --name X",
			"-A PREROUTING -p tcp -m recent --rcheck --name X"+dnatA), nil,
			[]Result{res(fwd.VerdictPass, "", false, 0.5), recorded([]Result{res(fwd.VerdictForward, "10.0.0.1:8080", false, 0.5)}, "X")[0]}},
	}
	withRecent := append(append([]cmp.Option(nil), comparer[:3]...), cmpopts.IgnoreFields(Result{}, "Trace"))
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			rs, err := Parse(fwd.IPv4, tc.rules)
			if err != nil {
				t.Fatal(err)
			}
			h := host
			h.Recent = tc.recent
			got, err := rs.Run(h, outside)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, withRecent...); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTrace(t *testing.T) {
	rs, err := Parse(fwd.IPv4, section("nat", []string{":X - [0:0]",
		"-A PREROUTING -d 10.9.9.9 -j X",
		"-A PREROUTING -d 10.96.0.1 -j X",
		"-A X -p tcp -m statistic --mode random --probability 0.25" + dnatA,
		"-A X -p tcp" + dnatB})+section("filter", []string{":FORWARD DROP [0:0]", "-A FORWARD -d 10.0.0.2 -j ACCEPT"}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := rs.Run(host, outside)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"nat -A PREROUTING -d 10.96.0.1/32 -j X",
		"nat -A X -p tcp -m statistic --mode random --probability 0.25000000000 -j DNAT --to-destination 10.0.0.1:8080",
		"filter FORWARD policy DROP"}
	if diff := cmp.Diff(want, got[0].Trace); diff != "" {
		t.Errorf("trace (-want +got):\n%s", diff)
	}
}

func TestManyBranches(t *testing.T) {
	var b strings.Builder
	b.WriteString("*nat\n")
	const n = 300
	for i := range n {
		ep := netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i%250 + 1)})
		fmt.Fprintf(&b, "-A PREROUTING -p tcp -m statistic --mode random --probability %.10f -j DNAT --to-destination %s\n",
			1/float64(n-i), netip.AddrPortFrom(ep, 80))
	}
	b.WriteString("COMMIT\n")
	rs, err := Parse(fwd.IPv4, b.String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := rs.Run(host, outside)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != n {
		t.Fatalf("%d results, want %d", len(got), n)
	}
	for _, r := range got {
		if math.Abs(r.Probability-1.0/n) > 1e-6 {
			t.Errorf("%v: probability %v", r.Endpoint, r.Probability)
		}
	}
}
