package nft

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Change is the kernel's notification of an object that a transaction added, changed or deleted.
type Change struct {
	// Kind is the type of the message, such as unix.NFT_MSG_DELRULE.
	Kind uint16
	// Family and Table are the object's. Only tables of the families ip and ip6 are reported.
	Family fwd.Family
	Table  string
	// Message is the whole notification. It is valid until the function that it is passed to
	// returns.
	Message netlink.Message
}

// Watch reports which families of nf_tables are changed by others, from when it returns until the
// context ends. foreign decides which changes count. report is called after each transaction, once
// for each family with such changes, with the process that committed it, such as "nft (pid 4711)":
// its name, and its thread ID in the first PID namespace of the machine. If notifications may have
// been lost, report is called for both families, without a process. Both functions must return
// quickly. ended is called last.
//
// The kernel sends a notification for each object that anybody writes, including us. While somebody
// listens, writing very many objects takes a quarter longer.
func Watch(ctx context.Context, foreign func(Change) bool, report func(f fwd.Family, process string), ended func()) error {
	w := &watch{foreign: foreign, report: report}
	return netlink.Subscribe(ctx, unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES}, netlink.Listener{
		Messages: w.messages,
		Missed: func() {
			w.changed = [2]bool{true, true}
			w.commit("")
		},
		Ended: ended,
	})
}

// WatchTable is Watch for a table that only conns should change.
func WatchTable(ctx context.Context, table string, conns []*Conn, report func(f fwd.Family, process string), ended func()) error {
	return Watch(ctx, func(c Change) bool {
		return c.Table == table && !slices.ContainsFunc(conns, func(own *Conn) bool { return own.writes.Sent(c.Message) })
	}, report, ended)
}

// watch groups notifications by transaction: the kernel sends one for each object, then one for the
// commit.
type watch struct {
	foreign func(Change) bool
	report  func(f fwd.Family, process string)
	// changed says, by fwd.Family.Index, whether the current transaction has a change that counts.
	changed [2]bool
}

func (w *watch) messages(ms []netlink.Message) {
	for _, m := range ms {
		attrs, err := m.NetfilterAttrs()
		if err != nil || m.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
			continue
		}
		if m.Type&0xff == unix.NFT_MSG_NEWGEN {
			w.commit(committer(attrs))
			continue
		}
		if c, ok := changeIn(m, attrs); ok && !w.changed[c.Family.Index()] && w.foreign(c) {
			w.changed[c.Family.Index()] = true
		}
	}
}

func (w *watch) commit(process string) {
	for _, f := range fwd.Families {
		if w.changed[f.Index()] {
			w.report(f, process)
		}
	}
	w.changed = [2]bool{}
}

// changeIn decodes a notification. The attribute with the table has the same number in all of them.
func changeIn(m netlink.Message, attrs []byte) (Change, bool) {
	c := Change{Kind: m.Type & 0xff, Message: m}
	switch m.Body[0] {
	case unix.NFPROTO_IPV4:
		c.Family = fwd.IPv4
	case unix.NFPROTO_IPV6:
		c.Family = fwd.IPv6
	default:
		return c, false
	}
	for a, err := range netlink.Attrs(attrs) {
		if err == nil && a.Type == unix.NFTA_TABLE_NAME {
			c.Table = a.Text()
			return c, true
		}
	}
	return c, false
}

// committer returns the process that committed a transaction, from the notification of its end
// (enum nft_gen_attributes).
func committer(attrs []byte) string {
	const procPID, procName = 2, 3
	a, err := netlink.AttrMap(attrs)
	if err != nil || a[procName].Text() == "" {
		return ""
	}
	return fmt.Sprintf("%s (pid %d)", a[procName].Text(), a[procPID].Net32())
}
