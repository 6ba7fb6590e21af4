package nft

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Watch reports from now on that somebody else has changed the table of a family: it sends to the channel, without waiting,
// after each transaction of others in which the table occurs, and where something of that kind may have been missed. conns
// are those whose own transactions are left out. The channel is closed when the context ends, unless Watch fails.
//
// The kernel tells of each element that anybody writes, ours too: while there is somebody to tell, that takes a quarter of
// the time of writing very many.
func Watch(ctx context.Context, changed chan<- struct{}, table string, conns ...*Conn) error {
	signal := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	return netlink.Subscribe(ctx, unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES}, netlink.Listener{
		Messages: func(ms []netlink.Message) {
			if slices.ContainsFunc(ms, func(m netlink.Message) bool {
				own := slices.ContainsFunc(conns, func(c *Conn) bool { return c.writes.Sent(m) })
				return !own && concerns(m, table)
			}) {
				signal()
			}
		},
		Missed: func(error) { signal() },
		Ended:  func() { close(changed) },
	})
}

// concerns says whether a message is about the table. In all of nf_tables' messages that name a table the attribute for it
// is the first kind.
func concerns(m netlink.Message, table string) bool {
	if m.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || m.Type&0xff == unix.NFT_MSG_NEWGEN || len(m.Body) < sizeofGenmsg {
		return false
	}
	for a, err := range netlink.Attrs(m.Body[sizeofGenmsg:]) {
		if err == nil && a.Type == unix.NFTA_TABLE_NAME {
			return a.Text() == table
		}
	}
	return false
}
