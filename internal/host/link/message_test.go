package link

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

const device = "fl-vip"

func localRoute(dst, src string) Route {
	r := Route{Dst: netip.MustParsePrefix(dst), Dev: device, Table: LocalTable}
	if src != "" {
		r.Src = netip.MustParseAddr(src)
	}
	return r
}

// FuzzDecode feeds arbitrary bytes to the decoders, which must not panic. A watch must signal
// messages that it cannot decode.
func FuzzDecode(f *testing.F) {
	for _, o := range []Object{
		Addr{Dev: device, Prefix: netip.MustParsePrefix("10.96.0.1/32")}, Addr{Dev: device, Prefix: netip.MustParsePrefix("fd00::1/128")},
		localRoute("10.97.0.0/16", "192.0.2.1"), MarkRoute(true, 71), Rule{IPv6: true, Priority: 100, Mark: 1, Mask: 1, Table: 71},
	} {
		r := owner(0).request(Change{Object: o}, 5)
		f.Add(r.Type, r.Body)
	}
	f.Fuzz(func(t *testing.T, typ uint16, body []byte) {
		m := netlink.Message{Type: typ, Body: body}
		_, err1 := decodeAddr(m)
		_, _, _, err2 := owner(0).decodeRoute(m)
		_, _, err3 := owner(0).decodeRule(m)
		err := errors.Join(err1, err2, err3)
		if got := owner(0).isLoss(m, device); err != nil && !got && (typ == unix.RTM_DELADDR || typ == unix.RTM_DELROUTE || typ == unix.RTM_DELRULE) {
			t.Errorf("%v is no loss", err)
		}
	})
}

// TestDecodeOwnMessages decodes objects as they are encoded: the kernel uses the same attributes in
// both directions.
func TestDecodeOwnMessages(t *testing.T) {
	for _, r := range []Route{localRoute("10.97.0.0/16", "192.0.2.1"), localRoute("fd00:97::/112", ""), MarkRoute(true, 100000), MarkRoute(false, 71)} {
		got, oif, ours, err := owner(0).decodeRoute(netlink.Message{Type: unix.RTM_NEWROUTE, Body: r.body(5, 0)})
		got.Dev = r.Dev
		if err != nil || got != r || oif != 5 || !ours {
			t.Errorf("%v: got %v, %d, %v, %v", r, got, oif, ours, err)
		}
	}
	for _, r := range []Rule{{Priority: 100, Mark: 1, Mask: 3, Table: 100000}, {IPv6: true, Priority: 100, Mark: 1, Mask: 3, Table: 7}} {
		if got, ours, err := owner(0).decodeRule(netlink.Message{Type: unix.RTM_NEWRULE, Body: r.body(0)}); err != nil || got != r || !ours {
			t.Errorf("%v: got %v, %v, %v", r, got, ours, err)
		}
	}
}
