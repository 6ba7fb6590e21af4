package rulesim

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
)

func newSet(t *testing.T, typ string, f fwd.Family, elements ...Element) *Set {
	t.Helper()
	s, err := NewSet(typ, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range elements {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func elem(addr string, port uint16, third string) Element {
	e := Element{Addr: netip.MustParseAddr(addr), Port: port}
	if port != 0 {
		e.Proto = fwd.TCP
	}
	if third != "" {
		e.Third = netip.MustParsePrefix(third)
	}
	return e
}

// testSets are for packets from 198.51.100.7 to 10.96.0.1:80.
func testSets(t *testing.T) map[string]*Set {
	udp := elem("10.96.0.1", 80, "")
	udp.Proto = fwd.UDP
	return map[string]*Set{
		"DST":      newSet(t, "hash:ip", fwd.IPv4, elem("10.96.0.1", 0, "")),
		"SRC":      newSet(t, "hash:ip", fwd.IPv4, elem("198.51.100.7", 0, "")),
		"EMPTY":    newSet(t, "hash:ip", fwd.IPv4),
		"SIX":      newSet(t, "hash:ip", fwd.IPv6, elem("fd00::1", 0, "")),
		"PORT":     newSet(t, "hash:ip,port", fwd.IPv4, elem("10.96.0.1", 80, "")),
		"PORT-SRC": newSet(t, "hash:ip,port", fwd.IPv4, elem("198.51.100.7", 80, "")),
		"OTHER":    newSet(t, "hash:ip,port", fwd.IPv4, elem("10.96.0.1", 81, ""), udp, elem("10.96.0.2", 80, "")),
		"NET":      newSet(t, "hash:ip,port,net", fwd.IPv4, elem("10.96.0.1", 80, "192.0.2.0/24"), elem("10.96.0.1", 80, "198.51.100.0/29"), elem("10.96.0.1", 81, "0.0.0.0/1")),
		"NET-81":   newSet(t, "hash:ip,port,net", fwd.IPv4, elem("10.96.0.1", 81, "198.51.100.0/24"), elem("10.96.0.1", 80, "198.51.100.8/29")),
		"SELF":     newSet(t, "hash:ip,port,ip", fwd.IPv4, elem("10.96.0.1", 80, "10.96.0.1/32")),
		"PAIR":     newSet(t, "hash:ip,port,ip", fwd.IPv4, elem("10.96.0.1", 80, "198.51.100.7/32")),
	}
}

func TestSetMatch(t *testing.T) {
	for _, tc := range []struct {
		match string
		want  bool
	}{
		{"--match-set DST dst", true},
		{"! --match-set DST dst", false},
		{"--match-set DST src", false},
		{"--match-set SRC src", true},
		{"--match-set EMPTY dst", false},
		{"! --match-set EMPTY dst", true},
		{"--match-set PORT dst,dst", true},
		{"--match-set PORT src,dst", false},
		{"--match-set PORT-SRC src,dst", true},
		{"--match-set OTHER dst,dst", false},
		{"! --match-set OTHER dst,dst", true},
		{"--match-set NET dst,dst,src", true},
		{"--match-set NET dst,dst,dst", false},
		{"--match-set NET-81 dst,dst,src", false},
		{"! --match-set NET-81 dst,dst,src", true},
		{"--match-set SELF dst,dst,src", false},
		{"--match-set SELF dst,dst,dst", true},
		{"--match-set PAIR dst,dst,src", true},
		// More dimensions than the set has are ignored, with fewer nothing is in it.
		{"--match-set DST dst,src", true},
		{"--match-set PORT dst", false},
		{"! --match-set PORT dst", true},
		{"--match-set NET dst,dst", false},
		{"--match-set SIX dst", false},
		{"! --match-set SIX dst", true},
	} {
		rs, err := Parse(fwd.IPv4, section("mangle", []string{"-A PREROUTING -m set " + tc.match + " -j DROP"}))
		if err != nil {
			t.Errorf("%s: %v", tc.match, err)
			continue
		}
		if got, want := rs.Rules("mangle", "PREROUTING")[0], "-m set "+tc.match+" -j DROP"; got != want {
			t.Errorf("saved as %q, want %q", got, want)
		}
		h := host
		h.Sets = testSets(t)
		got, err := rs.Run(h, outside)
		if err != nil {
			t.Errorf("%s: %v", tc.match, err)
		} else if (got[0].Verdict == fwd.VerdictDrop) != tc.want {
			t.Errorf("%s: %v, want a match: %v", tc.match, got, tc.want)
		}
	}
}

func TestSetRefusals(t *testing.T) {
	for _, match := range []string{
		"", "--match-set A", "--match-set A dst,dst,dst,dst", "--match-set A up", "--match-set A dst --match-set B dst", "--match-set " + strings.Repeat("a", 32) + " dst",
		"--match-set A dst --return-nomatch", "--match-set UNKNOWN dst",
	} {
		rs := New(fwd.IPv4)
		rs.HaveSet = func(name string) bool { return name != "UNKNOWN" }
		if err := rs.Restore(section("mangle", []string{"-A PREROUTING -m set " + match + " -j DROP"})); err == nil {
			t.Errorf("%q was taken", match)
		}
	}
	for name, rule := range map[string]string{
		"a set that is not there": "--match-set NONE dst",
		"a source port":           "--match-set PORT dst,src",
	} {
		rs, err := Parse(fwd.IPv4, section("mangle", []string{"-A PREROUTING -m set " + rule + " -j DROP"}))
		if err != nil {
			t.Fatal(err)
		}
		h := host
		h.Sets = testSets(t)
		if got, err := rs.Run(h, outside); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	if _, err := NewSet("bitmap:port", fwd.IPv4); err == nil {
		t.Error("a set of an unknown type was made")
	}
	for typ, e := range map[string]Element{
		"hash:ip":          elem("10.0.0.1", 80, ""),
		"hash:ip,port":     elem("10.0.0.1", 0, ""),
		"hash:ip,port,net": elem("10.0.0.1", 80, "0.0.0.0/0"),
		"hash:ip,port,ip":  elem("10.0.0.1", 80, "10.0.0.0/24"),
	} {
		for what, bad := range map[string]Element{"ill-formed": e, "of the other family": elem("fd00::1", 0, "")} {
			s := newSet(t, typ, fwd.IPv4)
			if err := s.Add(bad); err == nil {
				t.Errorf("%s took an element %s: %v", typ, what, bad)
			}
		}
	}
}

func TestIPVS(t *testing.T) {
	local := "192.168.7.10:8080"
	vip := func(scheduler string, reals ...Real) map[ServerKey]Server {
		return map[ServerKey]Server{{fwd.TCP, netip.MustParseAddrPort("10.96.0.1:80")}: {Scheduler: scheduler, Reals: reals}}
	}
	to := func(addr string, weight uint32) Real { return Real{netip.MustParseAddrPort(addr), weight} }
	two := []Real{to("10.0.0.1:8080", 1), to("10.0.0.2:8080", 3)}
	a, b := "10.0.0.1:8080", "10.0.0.2:8080"
	forward := func(p float64, q float64) []Result {
		return []Result{res(fwd.VerdictForward, a, false, p), res(fwd.VerdictForward, b, false, q)}
	}
	onlyA := []Result{res(fwd.VerdictForward, a, false, 1)}
	fromHost, fromLoopback := packet("192.168.7.10", "10.96.0.1:80", ""), packet("127.0.0.1", "10.96.0.1:80", "")
	bound := []netip.Prefix{netip.MustParsePrefix("10.96.0.1/32")}

	for _, tc := range []struct {
		name    string
		rules   string
		servers map[ServerKey]Server
		bound   []netip.Prefix
		divert  uint32
		p       fwd.Packet
		want    []Result
	}{
		{name: "rr ignores weights", servers: vip("rr", two...), bound: bound, p: outside, want: forward(0.5, 0.5)},
		{name: "wrr", servers: vip("wrr", two...), bound: bound, p: outside, want: forward(0.25, 0.75)},
		{name: "weight 0", servers: vip("rr", to(a, 1), to(b, 0)), bound: bound, p: outside, want: onlyA},
		{name: "fo takes the heaviest", servers: vip("fo", to(b, 1), to(a, 9)), bound: bound, p: outside, want: onlyA},
		{name: "no real server", servers: vip("rr"), bound: bound, p: outside, want: rejects},
		{name: "no real server for the host", servers: vip("rr"), bound: bound, p: fromHost, want: rejects},
		{name: "nobody delivers the address here", servers: vip("rr", two...), p: outside, want: passes},
		{name: "the host's own packets need no address", servers: vip("rr", two...), p: fromHost, want: forward(0.5, 0.5)},
		{name: "other port", servers: vip("rr", two...), bound: bound, p: packet("198.51.100.7", "10.96.0.1:81", "eth0"), want: passes},
		{name: "filter INPUT comes before", rules: section("filter", []string{"-A INPUT -d 10.96.0.1 -j DROP"}), servers: vip("rr", two...), bound: bound, p: outside, want: drops},
		{name: "filter OUTPUT comes after", rules: section("filter", []string{"-A OUTPUT -d 10.96.0.1 -j DROP", "-A OUTPUT -d 10.0.0.1 -j DROP"}),
			servers: vip("rr", two[0]), bound: bound, p: outside, want: drops},
		{name: "so it does for the host", rules: section("filter", []string{"-A OUTPUT -d 10.96.0.1 -j REJECT"}), servers: vip("rr", two[0]), p: fromHost, want: onlyA},
		{name: "FORWARD never", rules: section("filter", []string{":FORWARD DROP [0:0]"}), servers: vip("rr", two[0]), bound: bound, p: outside, want: onlyA},
		{name: "mangle OUTPUT of the rewritten packet", rules: section("mangle", []string{"-A OUTPUT -m ipvs --ipvs -j DROP"}), servers: vip("rr", two[0]), bound: bound, p: outside, want: drops},
		{name: "what was not rewritten", rules: section("mangle", []string{"-A OUTPUT -m ipvs ! --ipvs -j DROP"}), servers: vip("rr", two[0]), bound: bound, p: outside, want: onlyA},
		{name: "masquerade after it", rules: section("nat", []string{"-A POSTROUTING -m ipvs --vdir ORIGINAL --vmethod MASQ -j MASQUERADE"}), servers: vip("rr", two[0]), bound: bound, p: outside,
			want: []Result{res(fwd.VerdictForward, a, true, 1)}},
		{name: "replies are not simulated", rules: section("nat", []string{"-A POSTROUTING -m ipvs --vdir REPLY -j MASQUERADE", "-A POSTROUTING -m ipvs ! --vmethod MASQ -j MASQUERADE"}),
			servers: vip("rr", two[0]), bound: bound, p: outside, want: onlyA},
		{name: "it is no DNAT for conntrack", rules: section("filter", []string{"-A OUTPUT -m conntrack --ctstate DNAT -j DROP"}), servers: vip("rr", two[0]), bound: bound, p: outside, want: onlyA},
		{name: "redirected before", rules: section("nat", []string{"-A PREROUTING -d 10.96.0.2 -p tcp -j DNAT --to-destination 10.96.0.1:80"}) +
			section("filter", []string{"-A INPUT -m conntrack --ctstate DNAT -j ACCEPT", "-A INPUT -j DROP"}),
			servers: vip("rr", two[0]), bound: bound, p: packet("198.51.100.7", "10.96.0.2:80", "eth0"), want: onlyA},
		{name: "nat OUTPUT is not asked again", rules: section("nat", []string{"-A OUTPUT -d 10.0.0.1 -p tcp -j DNAT --to-destination 10.0.0.9:9"}), servers: vip("rr", two[0]), bound: bound, p: outside, want: onlyA},
		{name: "local real server", rules: section("nat", []string{"-A POSTROUTING -j MASQUERADE"}), servers: vip("rr", to(local, 1)), bound: bound, p: outside,
			want: []Result{res(fwd.VerdictForward, local, false, 1)}},
		{name: "local real server of the host", rules: section("nat", []string{"-A POSTROUTING -j MASQUERADE"}), servers: vip("rr", to(local, 1)), bound: bound, p: fromHost,
			want: []Result{res(fwd.VerdictForward, local, true, 1)}},
		{name: "from loopback to local", servers: vip("rr", to(local, 1)), bound: bound, p: fromLoopback, want: []Result{res(fwd.VerdictForward, local, false, 1)}},
		{name: "from loopback to elsewhere", servers: vip("rr", two[0]), bound: bound, p: fromLoopback, want: drops},

		{name: "by mark", rules: section("mangle", []string{"-A PREROUTING -d 10.96.0.1 -j MARK --set-xmark 0x10/0x10", "-A INPUT -j MARK --set-xmark 0x0/0x10"}), servers: vip("rr", two[0]), divert: 0x10, p: outside, want: onlyA},
		{name: "by mark, which stays", rules: section("mangle", []string{"-A PREROUTING -d 10.96.0.1 -j MARK --set-xmark 0x10/0x10"}), servers: vip("rr", two[0]), divert: 0x10, p: outside, want: drops},
		{name: "by another mark", rules: section("mangle", []string{"-A PREROUTING -d 10.96.0.1 -j MARK --set-xmark 0x20/0x20"}), servers: vip("rr", two[0]), divert: 0x10, p: outside, want: passes},
		{name: "by mark, the host", rules: section("mangle", []string{"-A OUTPUT -m ipvs --ipvs -j MARK --set-xmark 0x0/0x10", "-A OUTPUT -d 10.96.0.1 -j MARK --set-xmark 0x10/0x10"}),
			servers: vip("rr", two[0]), divert: 0x10, p: fromHost, want: onlyA},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rs, err := Parse(fwd.IPv4, tc.rules)
			if err != nil {
				t.Fatal(err)
			}
			h := host
			h.Servers, h.LocalPrefixes, h.DivertMark = tc.servers, tc.bound, tc.divert
			got, err := rs.Run(h, tc.p)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, comparer...); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	h := host
	h.Servers, h.LocalPrefixes = vip("nonesuch", two...), bound
	if got, err := New(fwd.IPv4).Run(h, outside); err == nil {
		t.Errorf("an unknown scheduler chose %v", got)
	}
}

func TestIPVSMatchRefusals(t *testing.T) {
	for _, match := range []string{"", "--ipvs --ipvs", "--ipvs --vdir ORIGINAL", "--vdir BOTH", "! --vdir REPLY", "--vmethod NONE", "--vmethod MASQ --vmethod MASQ", "--vaddr 10.0.0.1"} {
		if _, err := Parse(fwd.IPv4, section("mangle", []string{"-A OUTPUT -m ipvs " + match})); err == nil {
			t.Errorf("%q was taken", match)
		}
	}
	for _, match := range []string{"--ipvs", "! --ipvs", "--vdir ORIGINAL --vmethod MASQ", "--vdir REPLY", "! --vmethod GATE"} {
		rs, err := Parse(fwd.IPv4, section("mangle", []string{"-A OUTPUT -m ipvs " + match}))
		if err != nil {
			t.Errorf("%q: %v", match, err)
		} else if got := rs.Rules("mangle", "OUTPUT")[0]; got != "-m ipvs "+match {
			t.Errorf("%q is saved as %q", match, got)
		}
	}
}
