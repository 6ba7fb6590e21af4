package ipset

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// examples are changes of sets of every type and family.
func examples() []Change {
	addr, addr6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")
	tcp := uint8(unix.IPPROTO_TCP)
	return []Change{
		{Set: Set{Type: BitmapPort}, Entry: Entry{Port: 8080}},
		{Set: Set{Type: HashIP}, Entry: Entry{Addr: addr}},
		{Set: Set{Type: HashIP, IPv6: true}, Entry: Entry{Addr: addr6}},
		{Set: Set{Type: HashIPPort}, Entry: Entry{Addr: addr, Proto: unix.IPPROTO_UDP, Port: 53}},
		{Set: Set{Type: HashIPPort, IPv6: true}, Entry: Entry{Addr: addr6, Proto: unix.IPPROTO_SCTP, Port: 65535}},
		{Set: Set{Type: HashIPPortIP}, Entry: Entry{Addr: addr, Proto: tcp, Port: 80, Net: netip.MustParsePrefix("10.0.0.2/32")}},
		{Set: Set{Type: HashIPPortIP, IPv6: true}, Entry: Entry{Addr: addr6, Proto: tcp, Port: 80, Net: netip.MustParsePrefix("fd00::2/128")}},
		{Set: Set{Type: HashIPPortNet}, Entry: Entry{Addr: addr, Proto: tcp, Port: 80, Net: netip.MustParsePrefix("128.0.0.0/1")}},
		{Set: Set{Type: HashIPPortNet, IPv6: true}, Entry: Entry{Addr: addr6, Proto: tcp, Port: 80, Net: netip.MustParsePrefix("fd00::7/128")}},
	}
}

// FuzzDecodeList feeds arbitrary bytes to the decoder, which must not panic.
func FuzzDecodeList(f *testing.F) {
	for _, c := range examples() {
		f.Add(createRequest(c.Set).Body)
		f.Add(changeRequest(c).Body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = decodeList([]netlink.Message{{Type: unix.NFNL_SUBSYS_IPSET<<8 | cmdList, Body: body}})
		_, _ = HashIPPortNet.decodeEntry(body)
		_, _ = decodeIP(body)
	})
}

// TestDecodeOwnMessages decodes entries as they are encoded: the kernel uses the same attributes in
// both directions.
func TestDecodeOwnMessages(t *testing.T) {
	for _, c := range examples() {
		attrs, err := netlink.Message{Body: changeRequest(c).Body}.NetfilterAttrs()
		if err != nil {
			t.Fatal(err)
		}
		decoded := false
		for a, err := range netlink.Attrs(attrs) {
			if err != nil {
				t.Fatal(err)
			}
			if a.Type != attrData {
				continue
			}
			decoded = true
			if got, err := c.Set.Type.decodeEntry(a.Data); err != nil || got != c.Entry {
				t.Errorf("%s: got %v, %v, want %v", c.Set.Type, got, err, c.Entry)
			}
		}
		if !decoded {
			t.Errorf("%s: the message has no entry", c.Set.Type)
		}
	}
}

// TestKernelRefusesWhatValidateRefuses keeps the reasons that Validate gives true.
func TestKernelRefusesWhatValidateRefuses(t *testing.T) {
	hosttest.Netns(t)
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, tt := range []struct {
		typ   Type
		entry Entry
		want  unix.Errno
	}{
		{HashIPPortNet, Entry{Addr: netip.MustParseAddr("10.0.0.1"), Proto: 6, Net: netip.MustParsePrefix("0.0.0.0/0")}, 4104},
		{HashIP, Entry{Addr: netip.IPv4Unspecified()}, 4353},
		{HashIP, Entry{Addr: netip.MustParseAddr("fd00::1")}, 4097},
	} {
		s := Set{Name: "x", Type: tt.typ, MaxElem: 5}
		if err := k.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		errs, err := k.conn.Do(t.Context(), []netlink.Request{changeRequest(Change{Set: s, Entry: tt.entry})})
		if err != nil || len(errs) != 1 || !errors.Is(errs[0], tt.want) {
			t.Errorf("%s %v: got %v, %v, want %d", tt.typ, tt.entry, errs, err, tt.want)
		}
		if err := k.Destroy(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
}
