package rulesim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// fate is what happens to a packet after a rule's target.
type fate uint8

const (
	// next continues with the next rule.
	next fate = iota
	// accept ends the traversal of this hook.
	accept
	// leave returns to the calling chain.
	leave
	drop
	reject
)

// newTarget returns an empty target, or nil if there is none of that name.
func newTarget(name string) target {
	switch name {
	case "ACCEPT":
		return verdictTarget{plain{}, name, accept}
	case "DROP":
		return verdictTarget{plain{}, name, drop}
	case "RETURN":
		return verdictTarget{plain{}, name, leave}
	case "REJECT":
		return &rejectTarget{}
	case "DNAT":
		return &dnatTarget{}
	case "MASQUERADE":
		return &masqueradeTarget{}
	case "SNAT":
		return &snatTarget{}
	case "MARK":
		return &markTarget{}
	}
	return nil
}

func isTarget(name string) bool { return newTarget(name) != nil || name == "QUEUE" }

type verdictTarget struct {
	plain
	name string
	fate fate
}

func (t verdictTarget) String() string   { return t.name }
func (t verdictTarget) apply(*walk) fate { return t.fate }

type rejectTarget struct {
	plain
	with string
}

var rejectTypes = map[fwd.Family][]string{
	fwd.IPv4: {"icmp-port-unreachable", "icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable",
		"icmp-net-prohibited", "icmp-host-prohibited", "icmp-admin-prohibited", "tcp-reset"},
	fwd.IPv6: {"icmp6-port-unreachable", "icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable",
		"icmp6-policy-fail", "icmp6-reject-route", "tcp-reset"},
}

func (t *rejectTarget) options(f fwd.Family) []option {
	return []option{{name: "--reject-with", words: 1, set: func(s string, _ bool) error {
		t.with = s
		if !slices.Contains(rejectTypes[f], s) {
			return fmt.Errorf("not a type of %s", f)
		}
		return nil
	}}}
}

func (t *rejectTarget) done(r *rule) error {
	if t.with == "" {
		t.with = rejectTypes[r.family][0]
	}
	if t.with == "tcp-reset" && (r.proto == nil || r.proto.neg || protoName(r.proto.number) != "tcp") {
		return errors.New("--reject-with tcp-reset needs -p tcp")
	}
	return nil
}

func (t *rejectTarget) String() string { return "REJECT --reject-with " + t.with }
func (t *rejectTarget) table() string  { return "filter" }
func (t *rejectTarget) apply(w *walk) fate {
	w.reset = t.with == "tcp-reset"
	return reject
}

// dnatTarget is -j DNAT to one address, with or without a port.
type dnatTarget struct {
	addr netip.Addr
	// port is 0 if the destination port does not change.
	port uint16
}

func (t *dnatTarget) options(f fwd.Family) []option {
	return []option{{name: "--to-destination", words: 1, required: true, set: func(s string, _ bool) (err error) {
		if ap, err := netip.ParseAddrPort(s); err == nil && fwd.FamilyOf(ap.Addr()) == f && ap.Addr().Zone() == "" && ap.Port() != 0 {
			t.addr, t.port = ap.Addr(), ap.Port()
			return nil
		}
		t.addr, err = parseAddr(f, strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
		return err
	}}}
}

func (t *dnatTarget) done(r *rule) error {
	if t.port != 0 && !r.hasPorts() {
		return errors.New("target DNAT: a port needs -p tcp, udp or sctp")
	}
	return nil
}

func (t *dnatTarget) String() string {
	if t.port == 0 {
		return "DNAT --to-destination " + t.addr.String()
	}
	return "DNAT --to-destination " + netip.AddrPortFrom(t.addr, t.port).String()
}
func (t *dnatTarget) table() string   { return "nat" }
func (t *dnatTarget) hooks() []string { return []string{"PREROUTING", "OUTPUT"} }

func (t *dnatTarget) apply(w *walk) fate {
	port := t.port
	if port == 0 {
		port = w.dst.Port()
	}
	w.dst, w.dnat = netip.AddrPortFrom(t.addr, port), true
	w.natDst = w.dst
	return accept
}

type masqueradeTarget struct {
	plain
	random, fully bool
}

func (t *masqueradeTarget) options(fwd.Family) []option {
	return []option{
		{name: "--random", set: func(string, bool) error { t.random = true; return nil }},
		{name: "--random-fully", set: func(string, bool) error { t.fully = true; return nil }},
	}
}

func (t *masqueradeTarget) String() string {
	s := "MASQUERADE"
	if t.random {
		s += " --random"
	}
	if t.fully {
		s += " --random-fully"
	}
	return s
}
func (t *masqueradeTarget) table() string   { return "nat" }
func (t *masqueradeTarget) hooks() []string { return []string{"POSTROUTING"} }

func (t *masqueradeTarget) apply(w *walk) fate {
	w.masquerade = true
	return accept
}

// snatTarget is -j SNAT to one address, without a port.
type snatTarget struct {
	addr netip.Addr
	masqueradeTarget
}

func (t *snatTarget) options(f fwd.Family) []option {
	return append(t.masqueradeTarget.options(f), option{name: "--to-source", words: 1, required: true, set: func(s string, _ bool) (err error) {
		t.addr, err = parseAddr(f, s)
		return err
	}})
}

func (t *snatTarget) String() string {
	return strings.Replace(t.masqueradeTarget.String(), "MASQUERADE", "SNAT --to-source "+t.addr.String(), 1)
}

func (t *snatTarget) apply(w *walk) fate {
	w.source = t.addr
	return t.masqueradeTarget.apply(w)
}

// markTarget is -j MARK: mark = (mark &^ mask) ^ value.
type markTarget struct {
	plain
	value, mask uint32
}

func (t *markTarget) options(fwd.Family) []option {
	return []option{{name: "--set-xmark", words: 1, required: true, set: func(s string, _ bool) (err error) {
		t.value, t.mask, err = valueMask(s)
		return err
	}}}
}

// String prints a value of zero as iptables-save does, with 0x.
func (t *markTarget) String() string {
	return fmt.Sprintf("MARK --set-xmark 0x%x/0x%x", t.value, t.mask)
}

func (t *markTarget) apply(w *walk) fate {
	w.mark = w.mark&^t.mask ^ t.value
	return next
}
