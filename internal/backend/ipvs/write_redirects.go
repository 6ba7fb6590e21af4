package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// The chains change all at once, and then some sources meet other virtual servers than before: those whom FAIRLEAD-REDIRECT
// leads elsewhere, and any if sources are told apart in another way. The virtual servers must not have endpoints that are for
// others: so each gets its new endpoints, and loses its old ones, on the side of that moment on which nobody meets them whom
// they are not for. Where neither side will do it has none at that moment, so that clients are refused.
//
// This counts above all if one of the steps fails: what has been reached then stays for a while.

// turn is a change of the chains.
type turn struct {
	// gains are the virtual servers that some sources meet only after it, loses those that some meet only before.
	gains, loses map[Key]bool
}

// turnOf compares the rules that are there with those that are wanted. It is empty if those that are there lead nobody to a
// virtual server: mode iptables has its own endpoints in its chains, which go on with that until the last moment.
func turnOf(p plan) turn {
	if _, guarded := p.Actual(chainKey(tableMangle, "PREROUTING")); !guarded {
		return turn{}
	}
	t := turn{gains: make(map[Key]bool), loses: make(map[Key]bool)}
	chain := chainKey(tableNAT, chainRedirect)
	before, _ := p.Actual(chain)
	after, changes := p.Upserts[chain]
	if !changes {
		after = before
	}
	old, now := redirectsOf(before), redirectsOf(after)
	if reclassifies(p) {
		t.reclassify(p, old, now)
	}
	for from, to := range old {
		if now[from] == to {
			continue
		}
		t.loses[to] = true
		if _, still := now[from]; !still {
			t.gains[from] = true
		}
	}
	for from, to := range now {
		if old[from] == to {
			continue
		}
		t.gains[to] = true
		if _, already := old[from]; !already {
			t.loses[from] = true
		}
	}
	return t
}

// reclassify notes each virtual server of which anything changes: some meet it only after that. Others meet it only before, if it
// is not there for all sources alike.
func (t turn) reclassify(p plan, redirects ...map[Key]Key) {
	apart := make(map[Key]bool)
	for _, m := range redirects {
		for from, to := range m {
			apart[from], apart[to] = true, true
		}
	}
	for _, m := range []map[Key]Value{p.Upserts, p.Deletes} {
		for k := range m {
			if k.Kind != KindServer && k.Kind != KindEntry {
				continue
			}
			s := dialled(k)
			t.gains[s] = true
			if apart[s] || drops(p, s) {
				t.loses[s] = true
			}
		}
	}
}

// drops says whether a virtual server is, or is going to be, one that some sources may not dial.
func drops(p plan, server Key) bool {
	for _, class := range classNames {
		k := Key{Kind: KindEntry, Name: setName(fwd.FamilyOf(server.Addr.Addr()), setDrop+class), Proto: server.Proto, Addr: server.Addr}
		if _, before := p.Actual(k); before {
			return true
		}
		if _, after := p.Upserts[k]; after {
			return true
		}
	}
	return false
}

// reclassifies says whether chains change that tell sources apart.
func reclassifies(p plan) bool {
	_, guard := p.Upserts[chainKey(tableMangle, chainGuard)]
	_, services := p.Upserts[chainKey(tableNAT, chainServices)]
	return guard || services
}

// turnChains writes the chains, if what others meet by the new rules is as it is to be. The virtual servers that go and that
// others would meet have no endpoints from here on.
func (w *writer) turnChains(ctx context.Context) {
	var lower batch
	for _, k := range w.deletes[KindServer] {
		if w.turn.gains[k] {
			w.lowerAll(k, &lower)
		}
	}
	w.runLower(ctx, lower)
	for k := range w.turn.gains {
		if err := w.failed[k]; err != nil {
			w.chainsErr = fmt.Errorf("write chains: %w", err)
			w.failAll(slices.Concat(w.upserts[KindChain], w.deletes[KindChain]), w.chainsErr)
			return
		}
	}
	w.writeChains(ctx)
}

// redirectRule is a rule of FAIRLEAD-REDIRECT: from where, twice its protocol, its port, to where.
const redirectRule = "-d %s -p %s -m %s --dport %d -j DNAT --to-destination %s"

// redirectsOf says between which virtual servers the rules of FAIRLEAD-REDIRECT lead. What setRedirects does not write is left
// out.
func redirectsOf(v Value) map[Key]Key {
	out := make(map[Key]Key)
	for r := range rules(v) {
		var dst, name, match, dest string
		var port uint16
		if _, err := fmt.Sscanf(r, redirectRule, &dst, &name, &match, &port, &dest); err != nil {
			continue
		}
		proto, err := fwd.ParseProto(name)
		if err != nil {
			continue
		}
		from, err := netip.ParsePrefix(dst)
		if err != nil {
			continue
		}
		if to, err := netip.ParseAddrPort(dest); err == nil {
			out[spot{proto, netip.AddrPortFrom(from.Addr(), port)}.server()] = spot{proto, to}.server()
		}
	}
	return out
}
