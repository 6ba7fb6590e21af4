package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpTries is how often a list is read that changes while it is read.
const dumpTries = 5

// LocalAddrs returns the addresses of all interfaces, loopback and link-local ones included, of both families, sorted and
// without duplicates. Interfaces that are named in except are left out: kube-ipvs0 has addresses that are Services'.
func LocalAddrs(except ...string) ([]netip.Addr, error) {
	skip := make(map[int]bool)
	for _, name := range except {
		switch l, err := netlink.LinkByName(name); {
		case err == nil:
			skip[l.Attrs().Index] = true
		case !errors.As(err, &netlink.LinkNotFoundError{}):
			return nil, fmt.Errorf("find interface %s: %w", name, err)
		}
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	for i := 1; errors.Is(err, netlink.ErrDumpInterrupted) && i < dumpTries; i++ {
		list, err = netlink.AddrList(nil, netlink.FAMILY_ALL)
	}
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the node: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if a.IPNet == nil || skip[a.LinkIndex] {
			continue
		}
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// HasIPv6 says whether the kernel speaks IPv6 at all; it does not where it was started with ipv6.disable=1.
func HasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// retryAfter is the pause before a subscription that failed is made anew.
const retryAfter = time.Second

// Watch signals after addresses were added to or removed from interfaces. The channel holds one signal, so that a slow
// reader misses none; it is closed when the context has ended and nothing of the watch is left.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	sub, err := subscribe()
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	go watch(ctx, sub, out)
	return out, nil
}

// watch is the goroutine of Watch. It owns the subscription and out.
func watch(ctx context.Context, sub *subscription, out chan<- struct{}) {
	defer close(out)
	for {
		lost := sub.forward(ctx, out)
		sub.stop()
		for lost {
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryAfter):
			}
			var err error
			if sub, err = subscribe(); err == nil {
				signal(out) // what happened in between is not known
				break
			}
		}
		if !lost {
			return
		}
	}
}

func signal(out chan<- struct{}) {
	select {
	case out <- struct{}{}:
	default:
	}
}

type subscription struct {
	updates chan netlink.AddrUpdate
	done    chan struct{}
}

func subscribe() (*subscription, error) {
	s := &subscription{updates: make(chan netlink.AddrUpdate), done: make(chan struct{})}
	if err := netlink.AddrSubscribeWithOptions(s.updates, s.done, netlink.AddrSubscribeOptions{
		// The error ends the subscription, which closes updates; that is enough to know.
		ErrorCallback: func(error) {},
	}); err != nil {
		close(s.done)
		return nil, fmt.Errorf("subscribe to changes of addresses: %w", err)
	}
	return s, nil
}

// forward turns updates into signals until the context ends, or the subscription does, for which it returns true.
func (s *subscription) forward(ctx context.Context, out chan<- struct{}) (lost bool) {
	for {
		select {
		case <-ctx.Done():
			return false
		case _, ok := <-s.updates:
			if !ok {
				return true
			}
			signal(out)
		}
	}
}

// stop ends the subscription and waits for its goroutine.
func (s *subscription) stop() {
	close(s.done)
	for range s.updates {
	}
}
