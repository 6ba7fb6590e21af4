package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// The chains change all at once, and then some sources reach other virtual servers than before:
// those that FAIRLEAD-REDIRECT redirects differently, and possibly all if the classification of
// sources changes. No source may reach endpoints that are not meant for it. So each virtual server
// gets its new endpoints, and loses its old ones, before or after the change of the chains,
// whichever is safe. If neither is safe, it has no endpoints at the moment of the change, and
// clients are refused.
//
// This matters most if a step fails, because the intermediate state then lasts for a while.

// turn is a change of the chains.
type turn struct {
	// gains are the virtual servers that some sources reach only after the change, loses those that
	// some reach only before.
	gains, loses map[Key]bool
}

// turnOf compares the actual rules with the wanted ones. It is empty if the actual ones do not use
// virtual servers: chains of mode iptables have their own endpoints and use them until they are
// replaced.
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

// reclassify adds each virtual server that changes: some sources may reach it only after the
// change. If not all sources reach it, some may reach it only before.
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
			s := serverOfEntry(k)
			t.gains[s] = true
			if apart[s] || drops(p, s) {
				t.loses[s] = true
			}
		}
	}
}

// drops reports whether packets of some sources to a virtual server are dropped, before or after
// the change.
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

// reclassifies reports whether chains change that classify sources.
func reclassifies(p plan) bool {
	_, guard := p.Upserts[chainKey(tableMangle, chainGuard)]
	_, services := p.Upserts[chainKey(tableNAT, chainServices)]
	return guard || services
}

// turnChains writes the chains, unless a virtual server that some sources reach only with the new
// rules is not in its wanted state. Before, it takes the endpoints from removed virtual servers
// that some sources would reach.
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

// redirectRule is a rule of FAIRLEAD-REDIRECT: address, protocol (twice), port, new destination.
const redirectRule = "-d %s -p %s -m %s --dport %d -j DNAT --to-destination %s"

// redirectsOf parses the rules of FAIRLEAD-REDIRECT, by virtual server. Rules that setRedirects
// does not render are ignored.
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
