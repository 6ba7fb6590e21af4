package kube

import (
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Kind is a kind of object that a Feed waits for.
type Kind uint8

// The kinds; they can be combined by "or".
const (
	KindServices Kind = 1 << iota
	KindSlices
	KindNode
	KindServiceCIDRs
)

func (k Kind) String() string {
	switch k {
	case KindServices:
		return "Service"
	case KindSlices:
		return "EndpointSlice"
	case KindNode:
		return "Node"
	case KindServiceCIDRs:
		return "ServiceCIDR"
	}
	return "objects"
}

// allKinds are all kinds there are.
const allKinds = KindServices | KindSlices | KindNode | KindServiceCIDRs

// Feed collects the latest version of every changed object until the loop takes them. Sources write, the loop reads;
// all methods may be called by any goroutine. Values must not be changed after they were given to it.
type Feed struct {
	wake  chan struct{}
	start time.Time

	// mu guards all that follows.
	mu sync.Mutex
	// services and endpointSlices hold what is pending; nil stands for deleted.
	services       map[fwd.Service]*cluster.Service
	endpointSlices map[cluster.SliceName]*cluster.Slice
	node           *cluster.Node
	serviceCIDRs   *[]netip.Prefix
	// triggers are the new trigger times of pending slices, and lastTriggers those seen last: a version that repeats
	// its predecessor's was not caused by that trigger.
	triggers     map[cluster.SliceName][]time.Time
	lastTriggers map[cluster.SliceName]int64
	serviceSeen  int
	sliceSeen    int
	// drainedServices and drainedSlices count the changes that were handed over so far.
	drainedServices, drainedSlices int
	// waitingSince is when the oldest change came that was not taken yet, zero for none; lastChange when the newest ever came.
	waitingSince, lastChange time.Time
	// needed is what must have been delivered before the Feed is synced.
	synced, needed Kind
}

// NewFeed returns an empty Feed. Trigger times before this moment are not reported: a change that happened before the
// process started says nothing about its speed.
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
	f.node, f.serviceCIDRs, f.serviceSeen, f.sliceSeen = nil, nil, 0, 0
	f.waitingSince = time.Time{}
}

// Wake has a value when something was put into the Feed since the last receive. Its capacity is one.
func (f *Feed) Wake() <-chan struct{} { return f.wake }

func (f *Feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Drain applies everything pending to the store; of several versions of an object only the last. It may be called before
// the Feed is synced; the loop must not write to the kernel before that.
func (f *Feed) Drain(s *cluster.Store) cluster.Drained {
	f.mu.Lock()
	services, endpointSlices, node, cidrs, triggers := f.services, f.endpointSlices, f.node, f.serviceCIDRs, f.triggers
	d := cluster.Drained{Services: f.serviceSeen, Slices: f.sliceSeen}
	f.drainedServices += d.Services
	f.drainedSlices += d.Slices
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

// Backlog returns what was ever put into the Feed, and what of it no Drain has taken yet.
func (f *Feed) Backlog() cluster.Backlog {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := cluster.Backlog{Services: f.drainedServices + f.serviceSeen, Slices: f.drainedSlices + f.sliceSeen,
		WaitingServices: f.serviceSeen, WaitingSlices: f.sliceSeen, LastChange: f.lastChange}
	if f.isSynced() {
		b.WaitingSince = f.waitingSince
	}
	return b
}

// Synced says whether Services, EndpointSlices and the Node have all been delivered once, and the service CIDRs where they
// are waited for.
func (f *Feed) Synced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.isSynced()
}

func (f *Feed) isSynced() bool { return f.synced&f.needed == f.needed }

// awaitServiceCIDRs makes the Feed wait for the service CIDRs, too: a first write without them would take away what an
// earlier run has written for them.
func (f *Feed) awaitServiceCIDRs() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.needed |= KindServiceCIDRs
}

// MarkSynced says that all objects of the given kinds that exist have been delivered; without an argument, of all kinds.
func (f *Feed) MarkSynced(kinds ...Kind) {
	f.together(func() {
		if len(kinds) == 0 {
			f.synced = allKinds
		}
		for _, k := range kinds {
			f.synced |= k & allKinds
		}
	})
}

// SetService says that a Service was added or changed.
func (f *Feed) SetService(v *cluster.Service) { f.together(func() { f.putService(v.Name, v) }) }

// DeleteService says that a Service is gone or no longer handled.
func (f *Feed) DeleteService(name fwd.Service) {
	f.together(func() { f.putService(name, nil) })
}

// SetSlice says that an EndpointSlice was added or changed.
func (f *Feed) SetSlice(v *cluster.Slice) { f.together(func() { f.putSlice(v.Name, v) }) }

// DeleteSlice says that an EndpointSlice is gone or no longer handled.
func (f *Feed) DeleteSlice(name cluster.SliceName) { f.together(func() { f.putSlice(name, nil) }) }

// SetNode delivers the facts about the node, which also marks KindNode as synced.
func (f *Feed) SetNode(n cluster.Node) { f.together(func() { f.putNode(n) }) }

// SetServiceCIDRs delivers the service CIDRs of both families, sorted, which also marks KindServiceCIDRs as synced.
func (f *Feed) SetServiceCIDRs(cidrs []netip.Prefix) {
	f.together(func() { f.serviceCIDRs, f.synced = &cidrs, f.synced|KindServiceCIDRs })
}

// together makes changes by the methods below that no Drain can see a part of.
func (f *Feed) together(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.lastChange = time.Now()
	if f.waitingSince.IsZero() {
		f.waitingSince = f.lastChange
	}
	f.signal()
}

func (f *Feed) putService(name fwd.Service, v *cluster.Service) {
	f.services[name] = v
	f.serviceSeen++
}

func (f *Feed) putSlice(name cluster.SliceName, v *cluster.Slice) {
	f.endpointSlices[name] = v
	f.sliceSeen++
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
