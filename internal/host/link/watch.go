package link

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Watch signals after addresses were added to or removed from interfaces. The channel buffers one
// signal, so a slow reader does not miss the last. It is closed after the context has ended, when
// the watch has released its resources.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	return watch(ctx, []int{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}, func(netlink.Message) bool { return true })
}

// WatchLoss signals after an object that Apply added may have been removed or changed: the device
// or the loopback device was changed, or an address or one of our routes or rules was removed, no
// matter by whom. The kernel does not notify about IPv4 routes that it removes with their device or
// its last address, but it notifies about the device and the address. The channel is like that of
// Watch.
func (k *Kernel) WatchLoss(ctx context.Context, dev string) (<-chan struct{}, error) {
	return watch(ctx, []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	}, func(m netlink.Message) bool { return k.owner.isLoss(m, dev) })
}

// isLoss reports whether WatchLoss signals after a notification.
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
		// When a device is removed, such as a pod's, its link-local address is removed too.
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

// watch signals after messages for which relevant returns true, and when messages may have been
// lost.
func watch(ctx context.Context, groups []int, relevant func(netlink.Message) bool) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	signal := func() {
		select {
		case out <- struct{}{}:
		default:
		}
	}
	err := netlink.Subscribe(ctx, unix.NETLINK_ROUTE, groups, netlink.Listener{
		Messages: func(ms []netlink.Message) {
			if slices.ContainsFunc(ms, relevant) {
				signal()
			}
		},
		Missed: signal,
		Ended:  func() { close(out) },
	})
	return out, err
}
