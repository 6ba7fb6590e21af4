package netlink

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The first and the longest pause before a failed subscription is renewed.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 30 * time.Second
)

// Listener receives what the kernel multicasts. Its functions are called one at a time, in a
// goroutine of the subscription.
type Listener struct {
	// Messages is called with the messages of one datagram. They are valid until it returns.
	Messages func([]Message)
	// Missed is called if messages may have been lost because the socket failed, for example by an
	// overrun, after it was replaced.
	Missed func()
	// Ended is called last, after the end of the context.
	Ended func()
}

// Subscribe listens to multicast groups (unix.RTNLGRP_LINK, unix.NFNLGRP_NFTABLES) of a protocol in
// the network namespace of the calling thread, from when it returns until the context ends. If the
// socket fails it subscribes again, with growing pauses. The error is that of the first attempt.
func Subscribe(ctx context.Context, protocol int, groups []int, l Listener) error {
	ns, err := currentNamespace()
	if err != nil {
		return fmt.Errorf("subscribe to netlink protocol %d: %w", protocol, err)
	}
	c := settings{protocol: protocol, groups: groups, sendSize: bufferSize, namespace: ns}
	s, err := c.open()
	if err != nil {
		return errors.Join(err, ns.Close())
	}
	go func() {
		defer ns.Close()
		listen(ctx, s, c.open, l)
	}()
	return nil
}

// listen is the goroutine of a subscription. It owns the socket; open opens another.
func listen(ctx context.Context, s *socket, open func() (*socket, error), l Listener) {
	defer l.Ended()
	for pause := firstPause; ; {
		received := s.forward(ctx, l.Messages)
		_ = s.close()
		if received {
			pause = firstPause
		}
		for s = nil; s == nil; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
			s, _ = open() // if it fails, again after a longer pause
		}
		l.Missed()
	}
}

// forward passes on messages until the context ends or the socket fails. received says whether
// there were any.
func (s *socket) forward(ctx context.Context, messages func([]Message)) (received bool) {
	var batch []Message
	for {
		b, err := s.wait(ctx)
		if err != nil {
			return received
		}
		batch = batch[:0]
		for m, err := range Messages(b) {
			if err != nil {
				return received
			}
			batch = append(batch, m)
		}
		messages(batch)
		received = true
	}
}
