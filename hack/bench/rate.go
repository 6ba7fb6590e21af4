package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

// ratePort is the port on which pods accept and close connections.
const ratePort = 9090

// rates compares the rate of new connections on the node with that on a node without a proxy. The
// rounds alternate, so that other load on the machine affects all cases alike.
func (p *contestant) rates(ctx context.Context, s settings, empty *lab.Node) error {
	for _, n := range []*lab.Node{empty, p.node} {
		stop, err := probe.AcceptAll(n.Pods[0], ratePort)
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
			rate, err := probe.Rate(c.node.Pods[2], c.dst, 200*time.Millisecond)
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
