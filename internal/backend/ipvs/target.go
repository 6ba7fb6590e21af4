package ipvs

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// Device is the dummy device that VIPs are on, of the instance without a name. Kube-proxy uses the same; other programs know it by
// its name and leave it alone.
const Device = "kube-ipvs0"

// FamilyOptions is what the backend needs to know of one family.
type FamilyOptions struct {
	RenderOptions
	// Servers, Sets, Links and Tables are the kernel's.
	Servers hostipvs.Interface
	Sets    ipset.Sets
	Links   link.Host
	Tables  xtables.Interface
	// Stale is told which destinations may have connection-tracking entries from before their virtual server or, if gone, of
	// one that is no more; nil if nobody wants to know. It does not wait.
	Stale func(proto fwd.Proto, dst []netip.AddrPort, gone bool)
	// Seed is a number of this node's own: endpoints are added in an order that it decides, so that not all nodes begin
	// with the same one.
	Seed uint64
	// FinTimeout is after what time the kernel forgets a connection that is being closed, DrainTimeout how long a real
	// server may drain; 0 stands for the kernel's defaults of 2 and 15 minutes.
	FinTimeout, DrainTimeout time.Duration
	// Narrow says that rules of another mode may be in force until Widen is called, see narrow.go. It is for VIPMark alone.
	Narrow bool
	// Warn tells users about a Service; nil if there is nobody to tell.
	Warn func(s fwd.Service, reason, message string)
	// Now is the clock; nil stands for time.Now.
	Now func() time.Time
	// Logger may be nil.
	Logger *slog.Logger
}

func (o FamilyOptions) withDefaults() FamilyOptions {
	o.FinTimeout = cmp.Or(o.FinTimeout, 2*time.Minute)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, 15*time.Minute)
	o.Scheduler = cmp.Or(o.Scheduler, "rr")
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Warn == nil {
		o.Warn = func(fwd.Service, string, string) {}
	}
	if o.Stale == nil {
		o.Stale = func(fwd.Proto, []netip.AddrPort, bool) {}
	}
	return o
}

// target reads and writes the kernel of one family. Write and Tend belong to the loop's goroutine; Read may run beside
// them in another.
type target struct {
	family fwd.Family
	opts   FamilyOptions
	bounds bounds
	// pods knows which endpoints shut down.
	pods *pods
	// atOnce deletes virtual servers without draining: the daemon has ended and clean-up is asked for.
	atOnce bool
	// taggedOnly leaves alone what kube-proxy made, which is not to be adopted but may still be in use.
	taggedOnly bool

	// mu guards what follows.
	mu sync.Mutex
	// drains are the virtual servers of which something drains.
	drains map[Key]*drainingServer
	// held are objects that nobody wants but the connections of a draining virtual server. Nobody hears of them.
	held map[Key]Value
	// leaving are objects of the last plan that were to go, or virtual servers that were to change, and have not yet.
	leaving map[Key]struct{}
	// writes counts Writes and Tends that may have changed something, so that Read can tell that it was alone.
	writes uint64
	// writing counts those that go on.
	writing int
	// replaced are the schedulers of virtual servers which have the default one, since the kernel lacks theirs.
	replaced map[Key]*Server
	// complete says that the last Write had no failure, so that what is wanted is there.
	complete bool
	// narrow is FamilyOptions.Narrow until Widen.
	narrow bool
	// stray are VIPs as another --ipvs-vip made them.
	stray []link.Object
}

// device is the instance's device.
func (t *target) device() string { return t.opts.Instance.Device() }

type plan = backend.Plan[Key, Value]

func newTarget(f fwd.Family, o FamilyOptions) *target {
	o = o.withDefaults()
	if id := o.Instance; id != 0 {
		o.Tables, o.Sets = xtables.Exchanged(o.Tables, names(id)), ipset.Renamed(o.Sets, names(id).Name)
	}
	return &target{
		family: f, opts: o, bounds: bounds{fin: o.FinTimeout, longest: o.DrainTimeout}, pods: newPods(), narrow: o.Narrow,
		drains: make(map[Key]*drainingServer), held: make(map[Key]Value), replaced: make(map[Key]*Server),
		leaving: make(map[Key]struct{}),
	}
}

// Backend is what a node has of the mode; each of its families is a backend.Tender.
type Backend struct {
	backend.Families
	families []*family
	now      func() time.Time
}

// New returns a Backend for the families that the map names.
func New(opts map[fwd.Family]FamilyOptions) *Backend {
	b := &Backend{now: time.Now}
	for _, f := range fwd.Families {
		o, ok := opts[f]
		if !ok {
			continue
		}
		t := newTarget(f, o)
		fam := &family{Engine: backend.NewEngine(f, newRenderer(f, t.opts.RenderOptions), t, same), target: t}
		b.Families[f.Index()], b.families, b.now = fam, append(b.families, fam), t.opts.Now
	}
	return b
}

// Draining says what drains, by fwd.Family.Index. It may be called from any goroutine.
func (b *Backend) Draining() (out [2]Draining) {
	for _, f := range b.families {
		out[f.target.family.Index()] = f.target.draining(b.now())
	}
	return out
}

func (b *Backend) targets() (out []*target) {
	for _, f := range b.families {
		out = append(out, f.target)
	}
	return out
}

// family is the Backend of one family.
type family struct {
	*backend.Engine[Key, Value]
	target *target
}

var _ backend.Tender = (*family)(nil)

// Tend implements backend.Tender: it deletes what has drained.
func (f *family) Tend(ctx context.Context, now time.Time) time.Time { return f.target.Tend(ctx, now) }

// Update implements backend.Backend.
func (f *family) Update(ch fwd.Changes) {
	f.target.pods.update(ch)
	f.Engine.Update(ch)
}

// Cleanup implements backend.Backend. Nothing drains.
func (f *family) Cleanup(ctx context.Context) error {
	f.target.atOnce = true
	if err := f.Engine.Cleanup(ctx); err != nil {
		return err
	}
	return f.target.clean(ctx)
}

// excluded says that what has the address belongs to others.
func (t *target) excluded(a netip.Addr) bool {
	return slices.ContainsFunc(t.opts.Exclude, func(p netip.Prefix) bool { return p.Contains(a) })
}

// String names the object in errors and logs.
func (k Key) String() string {
	switch k.Kind {
	case KindSet:
		return "set " + k.Name
	case KindEntry:
		return fmt.Sprintf("%v in set %s", entry(k), k.Name)
	case KindChain:
		return fmt.Sprintf("chain %s of table %s", k.Name, k.Table)
	case KindServer:
		return fmt.Sprintf("virtual server %v", virtualServer(k))
	case KindDivert:
		return "routing by mark"
	}
	return fmt.Sprintf("local address %v", k.Prefix)
}

// entry is the element of a set that a key stands for.
func entry(k Key) ipset.Entry {
	return ipset.Entry{Addr: k.Addr.Addr(), Proto: uint8(k.Proto), Port: k.Addr.Port(), Net: k.Prefix}
}
