package kube

import (
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Kind is a set of kinds of objects that a Feed waits for.
type Kind uint8

// The kinds.
const (
	KindServices Kind = 1 << iota
	KindSlices
	KindNode
	KindServiceCIDRs
)

// allKinds are all kinds.
const allKinds = KindServices | KindSlices | KindNode | KindServiceCIDRs

// String returns the name of the resource.
func (k Kind) String() string {
	return map[Kind]string{
		KindServices: "services", KindSlices: "endpointslices", KindNode: "nodes", KindServiceCIDRs: "servicecidrs",
	}[k]
}

// Feed holds the latest version of every changed object until the loop drains it. Sources write,
// the loop reads; all methods are safe for concurrent use. Values passed to a Feed must not be
// changed.
type Feed struct {
	wake  chan struct{}
	start time.Time

	// mu guards the fields below.
	mu sync.Mutex
	// services and endpointSlices hold what is pending; nil means deleted.
	services       map[fwd.Service]*cluster.Service
	endpointSlices map[cluster.SliceName]*cluster.Slice
	node           *cluster.Node
	serviceCIDRs   *[]netip.Prefix
	// triggers are the new trigger times of pending slices; lastTriggers are the last times of all
	// slices. A version of a slice with the same time as the one before has another cause.
	triggers     map[cluster.SliceName][]time.Time
	lastTriggers map[cluster.SliceName]int64
	// backlog counts changes. Its WaitingSince is set even if the Feed is not synced.
	backlog cluster.Backlog
	// The Feed is synced when synced contains all of needed.
	synced, needed Kind
}

// NewFeed returns an empty Feed. It does not report trigger times before now: changes before the
// start of the process say nothing about its speed.
func NewFeed() *Feed {
	f := &Feed{wake: make(chan struct{}, 1), start: time.Now(), lastTriggers: make(map[cluster.SliceName]int64),
		needed: KindServices | KindSlices | KindNode}
	f.reset()
	return f
}

func (f *Feed) reset() {
	f.services = make(map[fwd.Service]*cluster.Service)
	f.endpointSlices = make(map[cluster.SliceName]*cluster.Slice)
	f.triggers = make(map[cluster.SliceName][]time.Time)
	f.node, f.serviceCIDRs = nil, nil
	f.backlog.WaitingServices, f.backlog.WaitingSlices, f.backlog.WaitingSince = 0, 0, time.Time{}
}

// Wake has a value if something was put into the Feed since the last receive. Its capacity is one.
func (f *Feed) Wake() <-chan struct{} { return f.wake }

func (f *Feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Drain applies everything pending to the store: the last version of each object. It may be called
// before the Feed is synced, but the loop must not write to the kernel before that.
func (f *Feed) Drain(s *cluster.Store) cluster.Drained {
	f.mu.Lock()
	services, endpointSlices, node, cidrs, triggers := f.services, f.endpointSlices, f.node, f.serviceCIDRs, f.triggers
	d := cluster.Drained{Services: f.backlog.WaitingServices, Slices: f.backlog.WaitingSlices}
	f.reset()
	f.mu.Unlock()

	for name, v := range services {
		if v == nil {
			s.DeleteService(name)
		} else {
			s.SetService(v)
		}
	}
	for name, v := range endpointSlices {
		if v == nil {
			s.DeleteSlice(name)
		} else {
			s.SetSlice(v)
			family := v.Family.Index()
			d.Triggers[family] = append(d.Triggers[family], triggers[name]...)
		}
	}
	if node != nil {
		d.NodeChanged = s.SetNode(*node)
	}
	if cidrs != nil && s.SetServiceCIDRs(*cidrs) {
		d.NodeChanged = true
	}
	return d
}

// Backlog returns how many changes were ever put into the Feed, and what is waiting to be drained.
// Nothing is late before the Feed is synced.
func (f *Feed) Backlog() cluster.Backlog {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.backlog
	if !f.isSynced() {
		b.WaitingSince = time.Time{}
	}
	return b
}

// Synced reports whether Services, EndpointSlices, the Node, and if needed the service CIDRs have
// all been delivered once.
func (f *Feed) Synced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.isSynced()
}

func (f *Feed) isSynced() bool { return f.synced&f.needed == f.needed }

// needServiceCIDRs makes the Feed wait for service CIDRs. Without them the first write would remove
// the rules that an earlier run wrote for them.
func (f *Feed) needServiceCIDRs() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.needed |= KindServiceCIDRs
}

// MarkSynced reports that all existing objects of a kind were delivered; without an argument, of
// all kinds.
func (f *Feed) MarkSynced(kinds ...Kind) {
	f.update(func() {
		if len(kinds) == 0 {
			f.synced = allKinds
		}
		for _, k := range kinds {
			f.synced |= k & allKinds
		}
	})
}

// SetService adds or changes a Service.
func (f *Feed) SetService(v *cluster.Service) { f.update(func() { f.putService(v.Name, v) }) }

// DeleteService removes a Service that was deleted or is no longer handled.
func (f *Feed) DeleteService(name fwd.Service) { f.update(func() { f.putService(name, nil) }) }

// SetSlice adds or changes an EndpointSlice.
func (f *Feed) SetSlice(v *cluster.Slice) { f.update(func() { f.putSlice(v.Name, v) }) }

// DeleteSlice removes an EndpointSlice that was deleted or is no longer handled.
func (f *Feed) DeleteSlice(name cluster.SliceName) { f.update(func() { f.putSlice(name, nil) }) }

// SetNode sets the facts about the node and marks KindNode as synced.
func (f *Feed) SetNode(n cluster.Node) { f.update(func() { f.putNode(n) }) }

// SetServiceCIDRs sets the service CIDRs of both families, sorted, and marks KindServiceCIDRs as
// synced.
func (f *Feed) SetServiceCIDRs(cidrs []netip.Prefix) {
	f.update(func() { f.serviceCIDRs, f.synced = &cidrs, f.synced|KindServiceCIDRs })
}

// update makes changes with the methods below; one Drain takes all of them.
func (f *Feed) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.backlog.LastChange = time.Now()
	if f.backlog.WaitingSince.IsZero() {
		f.backlog.WaitingSince = f.backlog.LastChange
	}
	f.signal()
}

func (f *Feed) putService(name fwd.Service, v *cluster.Service) {
	f.services[name] = v
	f.backlog.Services++
	f.backlog.WaitingServices++
}

func (f *Feed) putSlice(name cluster.SliceName, v *cluster.Slice) {
	f.endpointSlices[name] = v
	f.backlog.Slices++
	f.backlog.WaitingSlices++
	switch {
	case v == nil:
		delete(f.triggers, name)
		delete(f.lastTriggers, name)
	case v.TriggerUnixNano > f.start.UnixNano() && f.lastTriggers[name] != v.TriggerUnixNano:
		f.lastTriggers[name] = v.TriggerUnixNano
		f.triggers[name] = append(f.triggers[name], time.Unix(0, v.TriggerUnixNano))
	}
}

func (f *Feed) putNode(n cluster.Node) {
	f.node = &n
	f.synced |= KindNode
}
