package backendtest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// checkOwnAddresses lets Services claim the node's own addresses, as cluster IPs, external IPs and
// load-balancer IPs, and service CIDRs contain them: whatever they claim, the addresses keep all
// their other ports, and all ports afterwards.
func checkOwnAddresses(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	h := randomHeader(r)
	h.RejectOtherPorts, h.DropUnallocated = true, true
	for i, p := range plans {
		h.ServiceCIDRs[i] = pick(r, []netip.Prefix{p.nodes}, []netip.Prefix{p.vips[0], netip.PrefixFrom(p.local[1], p.local[1].BitLen())}, p.vips[:1], p.vips[2:])
	}
	w, err := newWorld(newSubject, h)
	if err != nil {
		return err
	}
	w.subject.Foreign()
	const services = 12
	for round := range 3 {
		for i := range services {
			if round == 0 || one(r, 3) {
				w.put(claimingFragment(r, i))
			}
		}
		if _, err := w.apply(); err != nil {
			return err
		}
		if round == 1 {
			if err := w.restart(r); err != nil {
				return err
			}
		}
		if err := w.keepsItsAddresses(r, 300); err != nil {
			return err
		}
	}
	for i := range services {
		w.remove(serviceName(i))
	}
	if _, err := w.apply(); err != nil {
		return err
	}
	if err := w.keepsItsAddresses(r, 300); err != nil {
		return fmt.Errorf("after all Services have gone: %w", err)
	}
	return w.subject.ForeignIntact()
}

// claimingFragment is a random fragment of which most frontends are on addresses of the node.
func claimingFragment(r *rand.Rand, i int) *fwd.Fragment {
	b := builder{r: r, frag: randomFragment(r, i), frontends: make(map[fwd.Key]fwd.Frontend), pools: make(map[fwd.PoolKey]fwd.Pool)}
	for _, fe := range b.frag.Frontends {
		if !fe.Key.IsNodePort() && !one(r, 4) {
			fe.Key.Addr = pick(r, plans[fe.Key.Family.Index()].local...)
		}
		b.frontends[fe.Key] = fe
	}
	for _, p := range b.frag.Pools {
		b.pools[p.Key] = p
	}
	b.frag.Frontends, b.frag.Pools, b.frag.Serving = nil, nil, nil
	return b.finish()
}

// keepsItsAddresses sends packets to addresses of the node. What no Service has must pass
// untouched.
func (w *world) keepsItsAddresses(r *rand.Rand, n int) error {
	var used []uint16
	for f := range w.table.Services() {
		for i := range f.Frontends {
			used = append(used, f.Frontends[i].Key.Port)
		}
	}
	judged := 0
	for range n {
		fam := pick(r, fwd.Families[:]...)
		ports := []uint16{22, 80, 179, 443, 6443, 10250, 10256, uint16(30000 + r.IntN(45)), uint16(1 + r.IntN(65535))}
		if len(used) > 0 {
			ports = append(ports, pick(r, used...), pick(r, used...), pick(r, used...)+1)
		}
		key := fwd.Key{Family: fam, Addr: pick(r, plans[fam.Index()].local...), Proto: pick(r, fwd.TCP, fwd.UDP, fwd.SCTP), Port: pick(r, ports...)}
		p := fwd.Packet{Proto: key.Proto, Dst: netip.AddrPortFrom(key.Addr, key.Port)}
		p.Src, p.InInterface = randomSource(r, w.table, key)
		nodePort := fwd.Key{Family: fam, Proto: key.Proto, Port: key.Port}
		if w.table.Frontend(key) != nil || w.table.Frontend(nodePort) != nil && w.header.NodePorts[fam.Index()].Serves(key.Addr, w.header.IsLocal(p.Src)) {
			continue
		}
		judged++
		got, err := w.subject.Judge(p)
		if err != nil {
			return fmt.Errorf("packet %+v: %w", p, err)
		}
		if foreign := func(o Outcome) bool { return o.Verdict != fwd.VerdictPass || o.Masquerade }; len(got) == 0 || slices.ContainsFunc(got, foreign) {
			return fmt.Errorf("packet %+v to a port of the node that no Service has: %v, want it to pass", p, got)
		}
	}
	if judged == 0 {
		return fmt.Errorf("none of %d packets was to a port that no Service has", n)
	}
	return nil
}
