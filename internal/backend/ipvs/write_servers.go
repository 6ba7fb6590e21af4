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

// makeServers makes virtual servers and what they are to have; what they are not to have is left for lowerServers, and what
// has to wait for the chains for makeLateReals.
//
// Virtual servers come before real servers, each in as few system calls as can be: what is added to a virtual server must
// not get into one of somebody else's that has the same address.
func (w *writer) makeServers(ctx context.Context) {
	keys := w.upserts[KindServer]
	if len(keys) == 0 {
		return
	}
	var servers batch
	for _, k := range keys {
		if w.failed[k] != nil {
			continue
		}
		want := w.plan.Upserts[k].Server
		have := w.have(k)
		settings := w.settingsFor(k, want)
		switch {
		case have == nil:
			servers.add(k, hostipvs.Op{Verb: hostipvs.AddServer, Settings: settings}, nil)
			w.stale[k.Proto] = append(w.stale[k.Proto], k.Addr)
		case !alike(settings, w.settingsFor(k, have)):
			servers.add(k, setServer(settings), nil)
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
		if h := w.have(k); h != nil {
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
		w.keep(k)
	}
	w.makeReals(ctx, reals)
	w.runLower(ctx, w.unfailed(lower))
}

// makeLateReals adds what waited for the chains.
func (w *writer) makeLateReals(ctx context.Context) {
	if w.chainsErr != nil {
		w.failAll(w.late.keys, w.chainsErr)
		return
	}
	w.makeReals(ctx, w.unfailed(w.late))
}

// unfailed are the operations on virtual servers of which nothing has failed.
func (w *writer) unfailed(b batch) (out batch) {
	for i, k := range b.keys {
		if w.failed[k] == nil {
			out.add(k, b.ops[i], b.done[i])
		}
	}
	return out
}

// have is the virtual server as the kernel has it, nil if it has none.
func (w *writer) have(k Key) *Server {
	if v, there := w.plan.Actual(k); there {
		return v.Server
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.drains[k]; s != nil && s.whole {
		// Whatever its endpoints were, they drain.
		return &Server{Scheduler: s.server.Scheduler, Flags: s.server.Flags, TimeoutSec: s.server.TimeoutSec}
	}
	return nil
}

// alike says whether two virtual servers have the same settings.
func alike(a, b hostipvs.Settings) bool { return a == b }

// settingsFor are what the kernel is to get for a virtual server: the default scheduler where it lacks the wanted one.
func (t *target) settingsFor(k Key, s *Server) hostipvs.Settings {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.replaced[k]; r != nil && r.Scheduler == s.Scheduler {
		return t.substitute(s)
	}
	return settings(s)
}

// substitute is a virtual server with the default scheduler.
func (t *target) substitute(s *Server) hostipvs.Settings {
	out := settings(s)
	out.Scheduler = t.opts.Scheduler
	out.Flags &= hostipvs.Persistent | hostipvs.Flags(ownerMask)
	if out.Scheduler == "sh" || out.Scheduler == "mh" {
		out.Flags |= hostipvs.Fallback
	}
	return out
}

// withDefaultScheduler tries those again whose scheduler the kernel lacks. It returns what fails otherwise.
func (w *writer) withDefaultScheduler(ctx context.Context, failed failures) failures {
	var again batch
	var rest failures
	for _, f := range failed {
		want := w.plan.Upserts[f.key]
		if !errors.Is(f.err, unix.ENOENT) || f.op.Settings.Scheduler == w.opts.Scheduler {
			rest = append(rest, f)
			continue
		}
		w.mu.Lock()
		w.replaced[f.key] = want.Server
		w.mu.Unlock()
		message := fmt.Sprintf("The node's kernel has no IPVS scheduler %q, %s serves %v instead: load the module ip_vs_%s or choose another one.",
			want.Server.Scheduler, w.opts.Scheduler, f.key.Addr, want.Server.Scheduler)
		w.opts.Logger.Warn("the kernel lacks a scheduler, the default one takes its place", "service", want.Owner.String(),
			"scheduler", want.Server.Scheduler, "default", w.opts.Scheduler, "error", f.err)
		w.opts.Warn(want.Owner, "SchedulerMissing", message)
		again.add(f.key, hostipvs.Op{Verb: f.op.Verb, Settings: w.settingsFor(f.key, want.Server)}, nil)
	}
	return append(rest, again.run(ctx, w.opts.Servers)...)
}

// adopt deals with failures of virtual servers. One that exists already is ours if it is tagged, or if its address is one
// of the device's or the node's: then it is a kube-proxy's, and gets our settings. Its endpoints are returned.
func (w *writer) adopt(ctx context.Context, failed failures) map[Key][]fwd.Endpoint {
	var exist []failure
	for _, f := range failed {
		switch {
		case f.op.Verb == hostipvs.AddServer && errors.Is(f.err, unix.EEXIST):
			exist = append(exist, f)
		case passing(f.err):
			w.fail(f.key, f.err)
		default:
			w.refuse(f.key, f.err)
		}
	}
	if len(exist) == 0 {
		return nil
	}
	content, err := w.opts.Servers.List(ctx)
	var bound map[netip.Addr]bool
	if err == nil {
		bound, err = w.localAddrs(ctx)
	}
	if err != nil {
		for _, f := range exist {
			w.fail(f.key, err)
		}
		return nil
	}
	flags := make(map[Key]hostipvs.Flags, len(content.Servers))
	for _, s := range content.Servers {
		flags[serverKey(s.VirtualServer)] = s.Settings.Flags
	}
	var take batch
	for _, f := range exist {
		a := f.key.Addr.Addr()
		if fl, there := flags[f.key]; there && !w.owns(fl, bound[a]) || w.excluded(a) {
			err := fmt.Errorf("%v belongs to another program, or to another instance: %w", f.key, f.err)
			w.refuse(f.key, err)
			w.taken[a] = err
			continue
		}
		take.add(f.key, setServer(f.op.Settings), nil)
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
		w.mu.Lock()
		w.drainFoundLocked(map[Key][]netip.AddrPort{k: idle})
		w.mu.Unlock()
		out[k] = serving
	}
	return out
}

// localAddrs are the addresses of the device and of the node.
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

// compare plans what it takes to get from the real servers that serve to those that are wanted; both are sorted.
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

// shuffle orders endpoints by the seed: the scheduler rr begins at one end, and not all nodes are to begin with the same.
func shuffle(seed uint64, k Key, eps []fwd.Endpoint) {
	h := fnv.New64a()
	b, _ := k.Addr.MarshalBinary() // of an AddrPort without an error
	_, _ = h.Write(b)
	r := rand.New(rand.NewPCG(seed, h.Sum64()))
	r.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
}

// raiseReal lets a real server serve. One that drains gets its weight back, and keeps its connections, unless it is another
// pod by now, which knows nothing of them.
func (w *writer) raiseReal(k Key, e fwd.Endpoint, reals *batch) {
	w.mu.Lock()
	var d *draining
	if s := w.drains[k]; s != nil {
		d = s.reals[e.Addr]
	}
	w.mu.Unlock()
	serves := func() { w.undrain(k, e.Addr) }
	switch {
	case d == nil:
		reals.add(k, addReal(e.Addr, e.Weight), nil)
	case d.instance != 0 && e.Instance != 0 && d.instance != e.Instance:
		reals.add(k, delReal(e.Addr), nil)
		reals.add(k, addReal(e.Addr, e.Weight), serves)
	default:
		reals.add(k, setReal(e.Addr, e.Weight), serves)
	}
}

// makeReals adds real servers and sets weights. One that is there already gets its weight, one that is not is added.
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
		again.add(f.key, op, func() { w.undrain(f.key, op.Real.Addr) })
	}
	for _, f := range again.run(ctx, w.opts.Servers) {
		w.blame(f)
	}
}

// blame notes a failure.
func (w *writer) blame(f failure) {
	if passing(f.err) {
		w.fail(f.key, f.err)
	} else {
		w.refuse(f.key, f.err)
	}
}

// lowerReal plans that a real server gets no new connections.
func (w *writer) lowerReal(k Key, e fwd.Endpoint, r Reason, lower *batch) {
	if k.Proto == fwd.UDP || w.atOnce {
		lower.add(k, delReal(e.Addr), nil)
		return
	}
	lower.add(k, setReal(e.Addr, 0), func() { w.drain(k, e, r) })
}

// lowerAll does it for all real servers of a virtual server that goes.
func (w *writer) lowerAll(k Key, lower *batch) {
	for _, e := range w.plan.Deletes[k].Server.Endpoints {
		w.lowerReal(k, e, DrainServer, lower)
	}
}

// lowerServers takes new connections away from real servers of virtual servers that stay.
func (w *writer) lowerServers(ctx context.Context) {
	w.runLower(ctx, w.unfailed(w.lower))
	w.ok(w.upserts[KindServer])
}

// runLower carries out what takes connections away; from what is not there nothing is to be taken.
func (w *writer) runLower(ctx context.Context, b batch) {
	for _, f := range b.run(ctx, w.opts.Servers) {
		if !errors.Is(f.err, unix.ESRCH) && !errors.Is(f.err, unix.ENOENT) {
			w.blame(f)
		}
	}
}

// deleteServers deletes virtual servers of UDP, and lets others drain.
func (w *writer) deleteServers(ctx context.Context) {
	keys := w.deletes[KindServer]
	var lower, remove batch
	for _, k := range keys {
		if k.Proto == fwd.UDP || w.atOnce {
			remove.add(k, hostipvs.Op{Verb: hostipvs.DelServer}, func() { w.forget(k) })
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
			w.drainWhole(k, w.plan.Deletes[k].Server)
		}
		w.mu.Lock()
		delete(w.replaced, k)
		w.mu.Unlock()
	}
	if len(gone) > 0 {
		w.opts.Stale(fwd.UDP, gone, true)
	}
}

// tendDeleted deletes what has drained; that is, of the virtual servers that go, all without connections. One that could not be
// deleted is not taken for one that drains: its address would stay, for the sake of no connection.
func (w *writer) tendDeleted(ctx context.Context) {
	_, failed := w.tend(ctx, w.opts.Now())
	for _, f := range failed {
		if _, goes := w.plan.Deletes[f.key]; goes && f.op.Verb == hostipvs.DelServer {
			w.keep(f.key)
			w.blame(f)
		}
	}
	if w.chainsErr == nil {
		w.ok(w.deletes[KindServer])
	}
}
