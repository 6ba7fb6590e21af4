package fwd

import (
	"net/netip"
	"testing"
)

// TestNoFrontend: what is sent to an address of a service CIDR at which nothing is served.
func TestNoFrontend(t *testing.T) {
	h := Header{RejectOtherPorts: true, DropUnallocated: true,
		ServiceCIDRs: [2][]netip.Prefix{{netip.MustParsePrefix("10.96.0.0/24")}, {netip.MustParsePrefix("fd00::/120")}},
		LocalAddrs:   []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("192.0.2.1")}}
	passing := h
	passing.RejectOtherPorts, passing.DropUnallocated = false, false
	port := ServicePort{Service: Service{Namespace: "ns", Name: "a"}, Port: "p", Proto: TCP}
	reject := Route{Action: Reject, Reason: ReasonNoEndpoints}
	frag := &Fragment{Owner: port.Service}
	for addr, kind := range map[string]Kind{"10.96.0.1": ClusterIP, "10.96.0.7": ClusterIP, "10.96.0.9": ExternalIP} {
		frag.Frontends = append(frag.Frontends, Frontend{Key: Key{Family: IPv4, Addr: netip.MustParseAddr(addr), Proto: TCP, Port: 80},
			Kind: kind, Owner: port, Routes: [NumClasses]Route{reject, reject, reject}})
	}
	tests := []struct {
		name, src, dst string
		verdict        Verdict
		reason         Reason
	}{
		{"another port of a cluster IP", "192.0.2.9", "10.96.0.1:81", VerdictReject, ReasonOtherPort},
		{"an address of no Service", "192.0.2.9", "10.96.0.2:80", VerdictDrop, ReasonUnallocated},
		{"from this host", "192.0.2.1", "10.96.0.2:80", VerdictDrop, ReasonUnallocated},
		{"the same, IPv6", "2001:db8::1", "[fd00::1]:80", VerdictDrop, ReasonUnallocated},
		{"another port of an external IP in the CIDR", "192.0.2.9", "10.96.0.9:81", VerdictDrop, ReasonUnallocated},
		{"an address of this host", "192.0.2.9", "10.96.0.7:81", VerdictPass, ReasonNotService},
		{"outside of the CIDRs", "192.0.2.9", "10.96.1.1:80", VerdictPass, ReasonNotService},
	}
	for _, tt := range tests {
		var table Table
		table.SetHeader(h)
		table.Put(frag)
		p := Packet{Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddrPort(tt.dst), Proto: TCP, InInterface: "eth0"}
		if got := table.Lookup(p); got.Verdict != tt.verdict || got.Reason != tt.reason {
			t.Errorf("%s: %v, %v, want %v, %v", tt.name, got.Verdict, got.Reason, tt.verdict, tt.reason)
		}
		table.SetHeader(passing)
		if got := table.Lookup(p); got.Verdict != VerdictPass {
			t.Errorf("%s, where nothing is rejected or dropped: %v", tt.name, got.Verdict)
		}
	}
}
