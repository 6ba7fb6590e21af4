package ipvs

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// Device is the dummy device with the VIPs of the unnamed instance. kube-proxy uses the same name,
// which other programs know and ignore.
const Device = "kube-ipvs0"

// FamilyOptions configures the backend of one family.
type FamilyOptions struct {
	RenderOptions
	// Servers, Sets, Links and Tables access the kernel.
	Servers hostipvs.Interface
	Sets    ipset.Sets
	Links   link.Host
	Tables  xtables.Interface
	// Stale, if not nil, is called with destinations that may have connection tracking entries from
	// before their virtual server or, if gone is true, of a deleted one. It does not block.
	Stale func(proto fwd.Proto, dst []netip.AddrPort, gone bool)
	// Seed differs between nodes. It determines the order in which endpoints are added, so that not
	// all nodes start with the same one.
	Seed uint64
	// FinTimeout is the time after which the kernel forgets a connection that is being closed; 0
	// means the kernel's default of 2 minutes. DrainTimeout is how long a real server may drain; 0
	// means 15 minutes.
	FinTimeout, DrainTimeout time.Duration
	// Narrow means that rules of another mode may be in force until Widen is called, see narrow.go.
	// It is for VIPMark only.
	Narrow bool
	// Warn, if not nil, reports a problem with a Service to users.
	Warn func(s fwd.Service, reason, message string)
	// Now is the clock; nil means time.Now.
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

// target reads and writes the kernel of one family. Write and Tend belong to the loop's goroutine;
// Read may run concurrently in another one.
type target struct {
	family fwd.Family
	opts   FamilyOptions
	drains *drains
	pods   *pods
	// atOnce deletes virtual servers without draining, for clean-up after the daemon has exited.
	atOnce bool
	// taggedOnly ignores virtual servers of kube-proxy, which may still be in use, instead of
	// adopting them.
	taggedOnly bool

	// mu guards the fields below.
	mu sync.Mutex
	// held are objects that only the connections of draining virtual servers need. Read does not
	// return them.
	held map[Key]Value
	// leaving are objects that the last plan deletes, or virtual servers that it changes, and that
	// are not written yet.
	leaving map[Key]struct{}
	// writes counts Writes and Tends that may have changed something, so that Read can detect them.
	writes uint64
	// writing counts those in progress.
	writing int
	// replaced are the wanted settings of virtual servers that have the default scheduler because
	// the kernel lacks theirs.
	replaced map[Key]hostipvs.Settings
	// complete means that the last Write had no failure, so that everything wanted exists.
	complete bool
	// narrow is FamilyOptions.Narrow until Widen.
	narrow bool
	// stray are objects that another VIPMode added.
	stray []link.Object
}

// device is the name of the instance's device.
func (t *target) device() string { return t.opts.Instance.Device() }

type plan = backend.Plan[Key, Value]

func newTarget(f fwd.Family, o FamilyOptions) *target {
	o = o.withDefaults()
	if id := o.Instance; id != 0 {
		o.Tables, o.Sets = xtables.Exchanged(o.Tables, names(id)), ipset.Renamed(o.Sets, names(id).Name)
	}
	return &target{
		family: f, opts: o, drains: newDrains(o.FinTimeout, o.DrainTimeout), pods: newPods(), narrow: o.Narrow,
		held: make(map[Key]Value), replaced: make(map[Key]hostipvs.Settings), leaving: make(map[Key]struct{}),
	}
}

// Backend is the backend of a node. Each of its families is a backend.Tender.
type Backend struct {
	backend.Families
	families []*family
	now      func() time.Time
}

// New returns a Backend for the families of the map.
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

// Draining returns what drains, by fwd.Family.Index. It may be called from any goroutine.
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

// family is the backend of one family.
type family struct {
	*backend.Engine[Key, Value]
	target *target
}

var _ backend.Tender = (*family)(nil)

// Tend implements backend.Tender.
func (f *family) Tend(ctx context.Context, now time.Time) time.Time { return f.target.Tend(ctx, now) }

// Update implements backend.Backend.
func (f *family) Update(ch fwd.Changes) {
	f.target.pods.update(ch)
	f.Engine.Update(ch)
}

// Cleanup implements backend.Backend. It does not wait for connections.
func (f *family) Cleanup(ctx context.Context) error {
	f.target.atOnce = true
	if err := f.Engine.Cleanup(ctx); err != nil {
		return err
	}
	return f.target.clean(ctx)
}
