package ipvs

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// makeServers adds virtual servers and real servers. What they lose is left to lowerServers, and
// what has to wait for the chains to makeLateReals.
//
// Virtual servers are added before real servers, each in as few system calls as possible: a real
// server must not be added to another program's virtual server with the same address.
func (w *writer) makeServers(ctx context.Context) {
	keys := w.upserts[KindServer]
	if len(keys) == 0 {
		return
	}
	draining := w.drains.whole()
	var servers batch
	for _, k := range keys {
		if w.failed[k] != nil {
			continue
		}
		want := w.settingsFor(k, w.plan.Upserts[k].Server.Settings)
		have := w.have(k, draining)
		switch {
		case have == nil:
			servers.add(k, hostipvs.Op{Verb: hostipvs.AddServer, Settings: want}, nil)
			w.stale[k.Proto] = append(w.stale[k.Proto], k.Addr)
		case want != w.settingsFor(k, have.Settings):
			servers.add(k, setServer(want), nil)
		}
	}
	failed := servers.run(ctx, w.opts.Servers)
	failed = w.withDefaultScheduler(ctx, failed)
	adopted := w.adopt(ctx, failed)

	var reals, lower batch
	for _, k := range keys {
		if w.failed[k] != nil {
			continue
		}
		have := adopted[k]
		want := w.plan.Upserts[k].Server.Endpoints
		if h := w.have(k, draining); h != nil {
			have = h.Endpoints
			if k.Proto == fwd.UDP && len(have) == 0 && len(want) > 0 {
				w.stale[fwd.UDP] = append(w.stale[fwd.UDP], k.Addr)
			}
		}
		raiseTo, lowerTo := &reals, &w.lower
		if w.turn.loses[k] {
			raiseTo = &w.late
		}
		if w.turn.gains[k] {
			lowerTo = &lower
		}
		w.compare(k, have, want, raiseTo, lowerTo)
		w.drains.keep(k)
	}
	w.makeReals(ctx, reals)
	w.runLower(ctx, w.unfailed(lower))
}

// makeLateReals adds real servers that waited for the chains.
func (w *writer) makeLateReals(ctx context.Context) {
	if w.chainsErr != nil {
		w.failAll(w.late.keys, w.chainsErr)
		return
	}
	w.makeReals(ctx, w.unfailed(w.late))
}

// unfailed returns the operations on virtual servers without failures.
func (w *writer) unfailed(b batch) (out batch) {
	for i, k := range b.keys {
		if w.failed[k] == nil {
			out.add(k, b.ops[i], b.done[i])
		}
	}
	return out
}

// have returns the virtual server in the kernel, nil if it does not exist. draining are those that
// drain as a whole; all of their endpoints drain.
func (w *writer) have(k Key, draining map[Key]hostipvs.Settings) *Server {
	if v, exists := w.plan.Actual(k); exists {
		return v.Server
	}
	if s, ok := draining[k]; ok {
		return &Server{Settings: s}
	}
	return nil
}

// settingsFor returns the settings for a virtual server in the kernel: with the default scheduler
// if the kernel lacks the wanted one.
func (t *target) settingsFor(k Key, s hostipvs.Settings) hostipvs.Settings {
	t.mu.Lock()
	defer t.mu.Unlock()
	if replaced, ok := t.replaced[k]; ok && replaced.Scheduler == s.Scheduler {
		return t.substitute(s)
	}
	return s
}

// substitute replaces the scheduler by the default one.
func (t *target) substitute(s hostipvs.Settings) hostipvs.Settings {
	s.Scheduler = t.opts.Scheduler
	s.Flags = s.Flags&(hostipvs.Persistent|ownerMask) | hashFlags(s.Scheduler, 0)
	return s
}

// withDefaultScheduler retries operations that failed because the kernel lacks the scheduler. It
// returns the other failures.
func (w *writer) withDefaultScheduler(ctx context.Context, failed failures) failures {
	var again batch
	var other failures
	for _, f := range failed {
		want := w.plan.Upserts[f.key]
		if !errors.Is(f.err, unix.ENOENT) || f.op.Settings.Scheduler == w.opts.Scheduler {
			other = append(other, f)
			continue
		}
		w.mu.Lock()
		w.replaced[f.key] = want.Server.Settings
		w.mu.Unlock()
		message := fmt.Sprintf("The node's kernel has no IPVS scheduler %q, so %v uses %s: load the module ip_vs_%s or choose another scheduler.",
			want.Server.Scheduler, f.key.Addr, w.opts.Scheduler, want.Server.Scheduler)
		w.opts.Logger.Warn("the kernel lacks the IPVS scheduler, using the default", "service", want.Owner.String(),
			"scheduler", want.Server.Scheduler, "default", w.opts.Scheduler, "error", f.err)
		w.opts.Warn(want.Owner, "SchedulerMissing", message)
		again.add(f.key, hostipvs.Op{Verb: f.op.Verb, Settings: w.settingsFor(f.key, want.Server.Settings)}, nil)
	}
	return append(other, again.run(ctx, w.opts.Servers)...)
}

// adopt handles failures to add or set virtual servers. One that exists already is ours if it has
// our tag, or if it has no tag and its address is on the device or the node; then kube-proxy made
// it, and it gets our settings. adopt returns its endpoints.
func (w *writer) adopt(ctx context.Context, failed failures) map[Key][]fwd.Endpoint {
	var existing failures
	for _, f := range failed {
		if f.op.Verb == hostipvs.AddServer && errors.Is(f.err, unix.EEXIST) {
			existing = append(existing, f)
		} else {
			w.blame(f)
		}
	}
	if len(existing) == 0 {
		return nil
	}
	take, err := w.adoptable(ctx, existing)
	if err != nil {
		for _, f := range existing {
			w.fail(f.key, err)
		}
		return nil
	}
	for _, f := range take.run(ctx, w.opts.Servers) {
		w.fail(f.key, f.err)
	}
	out := make(map[Key][]fwd.Endpoint)
	for _, k := range take.keys {
		reals, err := w.opts.Servers.RealServers(ctx, virtualServer(k))
		if err != nil {
			w.fail(k, err)
			continue
		}
		serving, idle := endpoints(reals)
		w.drains.found(map[Key][]netip.AddrPort{k: idle}, w.opts.Now())
		out[k] = serving
	}
	return out
}

// adoptable returns operations that adopt existing virtual servers, and refuses those of other
// programs.
func (w *writer) adoptable(ctx context.Context, existing failures) (take batch, err error) {
	content, err := w.opts.Servers.List(ctx)
	if err != nil {
		return batch{}, err
	}
	local, err := w.localAddrs(ctx)
	if err != nil {
		return batch{}, err
	}
	flags := make(map[Key]hostipvs.Flags, len(content.Servers))
	for _, s := range content.Servers {
		flags[serverKey(s.VirtualServer)] = s.Settings.Flags
	}
	for _, f := range existing {
		a := f.key.Addr.Addr()
		if fl, exists := flags[f.key]; exists && !w.owns(fl, local[a]) || w.opts.excludes(a) {
			err := fmt.Errorf("%v belongs to another program, or to another instance: %w", f.key, f.err)
			w.refuse(f.key, err)
			w.taken[a] = err
			continue
		}
		take.add(f.key, setServer(f.op.Settings), nil)
	}
	return take, nil
}

// localAddrs returns the addresses of the device and of the node.
func (t *target) localAddrs(ctx context.Context) (map[netip.Addr]bool, error) {
	on, others, err := t.opts.Links.Addrs(ctx, t.device())
	if err != nil {
		return nil, err
	}
	out := make(map[netip.Addr]bool, len(on)+len(others))
	for _, a := range on {
		out[a.Prefix.Addr()] = true
	}
	for _, a := range others {
		out[a] = true
	}
	return out, nil
}

// compare adds the operations that lead from the serving endpoints to the wanted ones; both are
// sorted.
func (w *writer) compare(k Key, have, want []fwd.Endpoint, reals, lower *batch) {
	first := len(have) == 0
	var fresh []fwd.Endpoint
	for len(have) > 0 || len(want) > 0 {
		order := 0
		switch {
		case len(want) == 0:
			order = -1
		case len(have) == 0:
			order = 1
		default:
			order = have[0].Addr.Compare(want[0].Addr)
		}
		switch {
		case order > 0:
			fresh = append(fresh, want[0])
		case order < 0:
			w.lowerReal(k, have[0], DrainRemoved, lower)
		case have[0].Weight != want[0].Weight:
			reals.add(k, setReal(want[0].Addr, want[0].Weight), nil)
		}
		if order <= 0 {
			have = have[1:]
		}
		if order >= 0 {
			want = want[1:]
		}
	}
	if first {
		shuffle(w.opts.Seed, k, fresh)
	}
	for _, e := range fresh {
		w.raiseReal(k, e, reals)
	}
}

// shuffle orders endpoints by the node's seed: the scheduler rr starts at one end, and nodes should
// not all start with the same endpoint.
func shuffle(seed uint64, k Key, eps []fwd.Endpoint) {
	h := fnv.New64a()
	b, _ := k.Addr.MarshalBinary() // never fails for an AddrPort
	_, _ = h.Write(b)
	r := rand.New(rand.NewPCG(seed, h.Sum64()))
	r.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
}

// raiseReal adds a real server. One that drains gets its weight back and keeps its connections,
// unless it is another pod by now, which does not know them.
func (w *writer) raiseReal(k Key, e fwd.Endpoint, reals *batch) {
	instance, draining := w.drains.draining(k, e.Addr)
	serves := func() { w.drains.stop(k, e.Addr) }
	switch {
	case !draining:
		reals.add(k, addReal(e.Addr, e.Weight), nil)
	case instance != 0 && e.Instance != 0 && instance != e.Instance:
		reals.add(k, delReal(e.Addr), nil)
		reals.add(k, addReal(e.Addr, e.Weight), serves)
	default:
		reals.add(k, setReal(e.Addr, e.Weight), serves)
	}
}

// makeReals adds real servers and sets weights. It corrects operations that assume wrongly that a
// real server exists or does not.
func (w *writer) makeReals(ctx context.Context, reals batch) {
	var again batch
	for _, f := range reals.run(ctx, w.opts.Servers) {
		op := f.op
		switch {
		case op.Verb == hostipvs.AddReal && errors.Is(f.err, unix.EEXIST):
			op.Verb = hostipvs.SetReal
		case op.Verb == hostipvs.SetReal && errors.Is(f.err, unix.ENOENT):
			op.Verb = hostipvs.AddReal
		default:
			w.blame(f)
			continue
		}
		again.add(f.key, op, func() { w.drains.stop(f.key, op.Real.Addr) })
	}
	for _, f := range again.run(ctx, w.opts.Servers) {
		w.blame(f)
	}
}

// lowerReal adds an operation that ends new connections to a real server.
func (w *writer) lowerReal(k Key, e fwd.Endpoint, r Reason, lower *batch) {
	if k.Proto == fwd.UDP || w.atOnce {
		lower.add(k, delReal(e.Addr), nil)
		return
	}
	lower.add(k, setReal(e.Addr, 0), func() { w.drain(k, e, r) })
}

// lowerAll calls lowerReal for all real servers of a virtual server that is removed.
func (w *writer) lowerAll(k Key, lower *batch) {
	for _, e := range w.plan.Deletes[k].Server.Endpoints {
		w.lowerReal(k, e, DrainServer, lower)
	}
}

// lowerServers ends new connections to removed real servers of virtual servers that stay.
func (w *writer) lowerServers(ctx context.Context) {
	w.runLower(ctx, w.unfailed(w.lower))
	w.ok(w.upserts[KindServer])
}

// runLower runs operations that end connections. Missing real and virtual servers are not failures.
func (w *writer) runLower(ctx context.Context, b batch) {
	for _, f := range b.run(ctx, w.opts.Servers) {
		if !errors.Is(f.err, unix.ESRCH) && !errors.Is(f.err, unix.ENOENT) {
			w.blame(f)
		}
	}
}

// deleteServers deletes virtual servers of UDP, and makes the others drain.
func (w *writer) deleteServers(ctx context.Context) {
	keys := w.deletes[KindServer]
	var lower, remove batch
	for _, k := range keys {
		if k.Proto == fwd.UDP || w.atOnce {
			remove.add(k, hostipvs.Op{Verb: hostipvs.DelServer}, func() { w.drains.forget(k) })
			continue
		}
		w.lowerAll(k, &lower)
	}
	w.runLower(ctx, lower)
	w.runLower(ctx, remove)
	var gone []netip.AddrPort
	for _, k := range keys {
		if w.failed[k] != nil {
			continue
		}
		if k.Proto == fwd.UDP {
			gone = append(gone, k.Addr)
		} else if !w.atOnce {
			w.drains.startWhole(k, w.plan.Deletes[k].Server.Settings)
		}
		w.mu.Lock()
		delete(w.replaced, k)
		w.mu.Unlock()
	}
	if len(gone) > 0 {
		w.opts.Stale(fwd.UDP, gone, true)
	}
}

// tendDeleted deletes what has drained, including removed virtual servers without connections. One
// that could not be deleted does not count as draining: otherwise its address would stay without
// need.
func (w *writer) tendDeleted(ctx context.Context) {
	_, failed := w.tend(ctx, w.opts.Now())
	for _, f := range failed {
		if _, removed := w.plan.Deletes[f.key]; removed && f.op.Verb == hostipvs.DelServer {
			w.drains.keep(f.key)
			w.blame(f)
		}
	}
	if w.chainsErr == nil {
		w.ok(w.deletes[KindServer])
	}
}
