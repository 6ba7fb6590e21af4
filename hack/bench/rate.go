package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
)

// ratePort is where pods accept connections and close them.
const ratePort = 9090

// acceptAll accepts and closes connections to ratePort of the pod until the function that it returns is called.
func acceptAll(p *lab.Pod) (func(), error) {
	var l net.Listener
	if err := p.Do(func() (err error) { l, err = net.Listen("tcp4", fmt.Sprintf(":%d", ratePort)); return err }); err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.Close()
			}
		}
	}()
	return func() { l.Close() }, nil
}

// rates compares new connections of the node with those of a node without a proxy. The rounds alternate, so that what else
// the machine does concerns all alike.
func (p *contestant) rates(ctx context.Context, s settings, empty *lab.Node) error {
	for _, n := range []*lab.Node{empty, p.node} {
		stop, err := acceptAll(n.Pods[0])
		if err != nil {
			return err
		}
		defer stop()
	}
	cases := []struct {
		node *lab.Node
		dst  netip.AddrPort
	}{
		{empty, netip.AddrPortFrom(empty.Pods[0].Addrs[0], ratePort)},
		{p.node, netip.AddrPortFrom(p.node.Pods[0].Addrs[0], ratePort)},
		{p.node, p.vips[p.rate]},
	}
	rates := make([][]float64, len(cases))
	for range s.rounds {
		for i, c := range cases {
			if err := ctx.Err(); err != nil {
				return err
			}
			var rate float64
			err := c.node.Pods[2].Do(func() (err error) { rate, err = connect(c.dst, 200*time.Millisecond); return err })
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], rate)
		}
	}
	median := func(i int) float64 {
		slices.Sort(rates[i])
		return rates[i][len(rates[i])/2]
	}
	base, direct, via := median(0), median(1), median(2)
	p.direct, p.through = direct/base, via/base
	p.directLatency, p.thLatency = time.Duration(1e9/direct), time.Duration(1e9/via)
	return nil
}

// connect makes connections one after the other for about so long and returns how many a second there were. Each is reset,
// so that no port is kept waiting.
func connect(dst netip.AddrPort, d time.Duration) (float64, error) {
	to := &unix.SockaddrInet4{Port: int(dst.Port()), Addr: dst.Addr().As4()}
	start, n := time.Now(), 0
	for ; time.Since(start) < d; n++ {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if err = unix.Connect(fd, to); err == nil {
			err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		unix.Close(fd)
		if err != nil {
			return 0, fmt.Errorf("connect to %s: %w", dst, err)
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
