package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/nlbatch"
)

// retryAfter is the pause before a subscription that failed is made anew.
const retryAfter = time.Second

// notificationBuffer holds what the kernel tells while nobody listens. It tells each change in a message of its own; where
// there is no room it says so, which counts as a change.
const notificationBuffer = 1 << 20

// Watch signals after addresses were added to or removed from interfaces. The channel holds one signal, so that a slow
// reader misses none; it is closed when the context has ended and nothing of the watch is left.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	return watch(ctx, subscription{
		groups:   []int{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR},
		concerns: func(nlbatch.Message) bool { return true },
	})
}

// WatchLoss signals after something that Apply made may be gone or changed: the device was removed or changed, or the
// loopback device was; an address, or one of our routes or rules, was removed, whoever did it. The kernel says nothing of
// IPv4 routes that it removes with their device or its last address, but it tells of those. The channel is like Watch's.
func WatchLoss(ctx context.Context, dev string) (<-chan struct{}, error) {
	return watch(ctx, subscription{
		groups: []int{
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		},
		concerns: func(m nlbatch.Message) bool { return isLoss(m, dev) },
	})
}

// isLoss says whether a notification is one for WatchLoss.
func isLoss(m nlbatch.Message, dev string) bool {
	switch m.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Body) < unix.SizeofIfInfomsg {
			return true
		}
		for a, err := range nlbatch.Attrs(m.Body[unix.SizeofIfInfomsg:]) {
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
		_, _, ours, err := decodeRoute(m)
		return err != nil || ours
	case unix.RTM_DELRULE:
		_, ours, err := decodeRule(m)
		return err != nil || ours
	}
	return false
}

// subscription is what a watch hears of.
type subscription struct {
	groups []int
	// concerns says whether a message makes a signal.
	concerns func(nlbatch.Message) bool
}

func watch(ctx context.Context, s subscription) (<-chan struct{}, error) {
	file, err := s.open()
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	go s.run(ctx, file, out)
	return out, nil
}

// run is the goroutine of a watch. It owns the file and out.
func (s subscription) run(ctx context.Context, file *os.File, out chan<- struct{}) {
	defer close(out)
	for {
		stop := context.AfterFunc(ctx, func() { file.Close() })
		s.forward(file, out)
		stop()
		file.Close()
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryAfter):
			}
			var err error
			if file, err = s.open(); err == nil {
				signal(out) // what happened in between is not known
				again = true
			}
		}
	}
}

// forward turns messages into signals until the file is closed or fails.
func (s subscription) forward(file *os.File, out chan<- struct{}) {
	buf := make([]byte, 64<<10)
	for {
		n, err := file.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // messages were lost
			signal(out)
			continue
		case err != nil:
			return
		}
		for m, err := range nlbatch.Messages(buf[:n]) {
			if err != nil || s.concerns(m) {
				signal(out)
				break
			}
		}
	}
}

func signal(out chan<- struct{}) {
	select {
	case out <- struct{}{}:
	default:
	}
}

// open makes a socket that receives from the groups.
func (s subscription) open() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of addresses: %w", err)
	}
	// The runtime's poller lets Close end a Read.
	file := os.NewFile(uintptr(fd), "rtnetlink notifications")
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, g := range s.groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err == nil {
		// Where this is not allowed the buffer is smaller, and more is lost, which makes a signal too.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, notificationBuffer)
		if errors.Is(err, unix.EPERM) {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of addresses: %w", errors.Join(err, file.Close()))
	}
	return file, nil
}
