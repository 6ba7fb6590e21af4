package link

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Watch signals after addresses were added to or removed from interfaces. The channel holds one signal, so that a slow
// reader misses none; it is closed when the context has ended and nothing of the watch is left.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	return watch(ctx, []int{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}, func(netlink.Message) bool { return true })
}

// WatchLoss signals after something that Apply made may be gone or changed: the device was removed or changed, or the
// loopback device was; an address, or one of our routes or rules, was removed, whoever did it. The kernel says nothing of
// IPv4 routes that it removes with their device or its last address, but it tells of those. The channel is like Watch's.
func (k *Kernel) WatchLoss(ctx context.Context, dev string) (<-chan struct{}, error) {
	return watch(ctx, []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	}, func(m netlink.Message) bool { return k.owner.isLoss(m, dev) })
}

// isLoss says whether a notification is one for WatchLoss.
func (o owner) isLoss(m netlink.Message, dev string) bool {
	switch m.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Body) < unix.SizeofIfInfomsg {
			return true
		}
		for a, err := range netlink.Attrs(m.Body[unix.SizeofIfInfomsg:]) {
			if err != nil || a.Type == unix.IFLA_IFNAME {
				return err != nil || a.Text() == dev || a.Text() == Loopback
			}
		}
		return true
	case unix.RTM_DELADDR:
		// Each device that goes, such as a pod's, takes its link-local address along.
		a, err := decodeAddr(m)
		return err != nil || !a.prefix.Addr().IsLinkLocalUnicast()
	case unix.RTM_DELROUTE:
		_, _, ours, err := o.decodeRoute(m)
		return err != nil || ours
	case unix.RTM_DELRULE:
		_, ours, err := o.decodeRule(m)
		return err != nil || ours
	}
	return false
}

// watch signals after messages for which concerns returns true, and where messages may have been lost.
func watch(ctx context.Context, groups []int, concerns func(netlink.Message) bool) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	signal := func() {
		select {
		case out <- struct{}{}:
		default:
		}
	}
	err := netlink.Subscribe(ctx, unix.NETLINK_ROUTE, groups, netlink.Listener{
		Messages: func(ms []netlink.Message) {
			if slices.ContainsFunc(ms, concerns) {
				signal()
			}
		},
		Missed: signal,
		Ended:  func() { close(out) },
	})
	return out, err
}
