package backendtest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// checkForeignMarks sends packets that are marked as ours are: nothing becomes of those that are
// for no Service.
func checkForeignMarks(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 20, newSubject)
	if err != nil {
		return err
	}
	s, ok := w.subject.(Marked)
	if !ok {
		return errNotApplicable
	}
	passed := 0
	for _, p := range randomPackets(r, w.table, 1000) {
		o := w.table.Lookup(p)
		if o.Verdict != fwd.VerdictPass {
			continue
		}
		passed++
		got, err := s.JudgeMarked(p, w.header.Mark())
		if err != nil {
			return fmt.Errorf("packet %+v: %w", p, err)
		}
		if err := w.compare(p, o, got); err != nil {
			return fmt.Errorf("packet %+v with the mark %#x:\n%w", p, w.header.Mark(), err)
		}
	}
	if passed < 10 {
		return fmt.Errorf("only %d packets are for no Service", passed)
	}
	return nil
}

// checkUnmoved has a Service with an endpoint at its frontend's own address and port: connection
// tracking sees no translation in a connection that goes there, which is masqueraded all the same.
// Then the endpoint goes.
func checkUnmoved(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 0, newSubject)
	if err != nil {
		return err
	}
	owner := serviceName(0)
	port := fwd.ServicePort{Service: owner, Port: "http", Proto: fwd.TCP}
	masquerade := fwd.Route{Action: fwd.Forward, Masquerade: true}
	own, others := &fwd.Fragment{Owner: owner}, &fwd.Fragment{Owner: owner}
	var packets []fwd.Packet
	for i, fam := range fwd.Families {
		vip := netip.AddrPortFrom(nth(plans[i].vips[2], 2), 80)
		frontends := []fwd.Frontend{{Key: fwd.Key{Family: fam, Addr: vip.Addr(), Proto: fwd.TCP, Port: 80}, Kind: fwd.ExternalIP, Owner: port,
			Routes: [fwd.NumClasses]fwd.Route{masquerade, masquerade, masquerade}}}
		pool := func(addrs ...netip.AddrPort) fwd.Pool {
			p := fwd.Pool{Key: fwd.PoolKey{Port: port, Family: fam}}
			for _, a := range addrs {
				p.Endpoints = append(p.Endpoints, fwd.Endpoint{Addr: a, Weight: 1})
			}
			slices.SortFunc(p.Endpoints, func(a, b fwd.Endpoint) int { return a.Addr.Compare(b.Addr) })
			return p
		}
		elsewhere := netip.AddrPortFrom(nth(plans[i].pods, 600), 8080)
		own.Frontends, own.Pools = append(own.Frontends, frontends...), append(own.Pools, pool(vip, elsewhere))
		others.Frontends, others.Pools = append(others.Frontends, frontends...), append(others.Pools, pool(elsewhere))
		packets = append(packets, fwd.Packet{Src: nth(plans[i].clients, 3), Dst: vip, Proto: fwd.TCP, InInterface: "eth0"},
			fwd.Packet{Src: plans[i].local[0], Dst: vip, Proto: fwd.TCP})
	}
	for _, f := range []*fwd.Fragment{own, others, own} {
		w.put(f)
		if _, err := w.apply(); err != nil {
			return err
		}
		for _, p := range packets {
			if len(w.want(p, w.table.Lookup(p))) == 0 {
				continue // a documented difference: nobody can say
			}
			if err := w.agree([]fwd.Packet{p}); err != nil {
				return err
			}
		}
		if err := w.asFromScratch(newSubject); err != nil {
			return err
		}
	}
	return nil
}
