package netlink

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The pauses before a subscription that failed is made again, and the longest of them.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 30 * time.Second
)

// Listener hears what the kernel multicasts. Its functions are called one at a time, in a goroutine of the subscription.
type Listener struct {
	// Messages is called with messages that came together, such as those about one transaction. They are valid until it returns.
	Messages func([]Message)
	// Missed is called after messages may have been lost, once later ones are heard again: the socket was overrun, or
	// failed and was replaced. why is the cause.
	Missed func(why error)
	// Ended is called last, after the end of the context.
	Ended func()
}

// Subscribe listens to multicast groups (unix.RTNLGRP_LINK, unix.NFNLGRP_NFTABLES) of a protocol in the network namespace of
// the calling thread, from when it returns until the context ends. After any failure it subscribes again, with growing
// pauses. The error is that of the first attempt.
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

// listen is the goroutine of a subscription. It owns the socket; open makes another.
func listen(ctx context.Context, s *socket, open func() (*socket, error), l Listener) {
	defer l.Ended()
	for pause := firstPause; ; {
		heard, why := s.forward(ctx, l.Messages)
		_ = s.close()
		if heard {
			pause = firstPause
		}
		for s = nil; s == nil; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
			var err error
			if s, err = open(); err != nil {
				why = err
			}
		}
		l.Missed(why)
	}
}

// forward hands on messages until the context ends or something fails. heard says whether there were any.
func (s *socket) forward(ctx context.Context, messages func([]Message)) (heard bool, err error) {
	var together []Message
	for {
		b, err := s.wait(ctx)
		if err != nil {
			return heard, err
		}
		together = together[:0]
		for m, err := range Messages(b) {
			if err != nil {
				return heard, err
			}
			together = append(together, m)
		}
		messages(together)
		heard = true
	}
}
