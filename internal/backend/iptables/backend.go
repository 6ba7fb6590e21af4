package iptables

import (
	"context"
	"io"
	"log/slog"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// FamilyOptions configures the backend for one family.
type FamilyOptions struct {
	// Instance owns the rules.
	Instance instance.ID
	// Tables are the kernel's tables.
	Tables xtables.Interface
	// HairpinBPF is whether the kernel has xt_bpf (xtables.NeedBPF). Without it, one rule per
	// endpoint address matches hairpin connections.
	HairpinBPF bool
	// RandomFully is whether masquerading can choose source ports at random
	// (xtables.Tables.RandomFully).
	RandomFully bool
	// DropInvalid drops forwarded packets of conntrack state INVALID. Unless
	// net.netfilter.nf_conntrack_tcp_be_liberal is set, they would make a peer reset its
	// connection.
	DropInvalid bool
	// MaxChains limits the number of chains in one restore where possible; 0 means no limit. The
	// nft userland needs a limit because its time grows with the square of the number. The legacy
	// userland does not: it reads and writes everything each time.
	MaxChains int
}

// nftMaxChains is the MaxChains of the nft userland.
const nftMaxChains = 1000

// New returns a Backend for the families in the map.
func New(opts map[fwd.Family]FamilyOptions) *Backend {
	b := &Backend{Found: new(backend.Found)}
	for _, f := range fwd.Families {
		if o, ok := opts[f]; ok {
			b.Families[f.Index()] = b.engine(f, o)
		}
	}
	return b
}

// engine returns the Backend of one family.
func (b *Backend) engine(f fwd.Family, o FamilyOptions) backend.Backend {
	r := newRenderer(f, o.options())
	n := &counts{family: f}
	b.counts[f.Index()].Store(n)
	t := &target{family: f, tables: xtables.Exchanged(o.Tables, names(o.Instance)), maxChains: o.MaxChains, culprit: r.culprit, counts: n, found: b.Found}
	return backend.NewEngine(f, &counted{r, n, make(map[ChainID]int32)}, t, sameRules)
}

func (o FamilyOptions) options() options {
	return options{bpf: o.HairpinBPF, randomFully: o.RandomFully, dropInvalid: o.DropInvalid}
}

// Plane is mode iptables on this node's kernel.
type Plane struct {
	*Backend
	// Flavour is the iptables flavour in use.
	Flavour xtables.Flavour
	// Drift receives a hint when another process changes rules of a family for which Listen was
	// called.
	Drift backend.Hints
	// Listen starts watching a family. Call it once per family, after the first complete write.
	Listen func(fwd.Family)
}

// Open detects which iptables the node uses and returns the Plane of an instance, for the families
// that the kernel and the tools support, at least one. The error says what is missing and what to
// do.
func Open(ctx context.Context, log *slog.Logger, id instance.ID, dropInvalid bool) (*Plane, error) {
	flavour, why, err := xtables.Detect(ctx, xtables.Host{})
	if err != nil {
		return nil, err
	}
	p := &Plane{Backend: New(nil), Flavour: flavour, Drift: backend.NewHints()}
	var kernel [2]*xtables.Tables
	p.Families, err = backend.Open(ctx, log, func(ctx context.Context, f fwd.Family) (backend.Backend, error) {
		tables, err := xtables.New(flavour, f == fwd.IPv6)
		if err != nil {
			return nil, err
		}
		if err := tables.Usable(ctx); err != nil {
			return nil, err
		}
		affinity, bpf, err := tryKernel(ctx, tables, names(id))
		if err != nil {
			return nil, err
		}
		o := FamilyOptions{
			Instance:    id,
			Tables:      tables,
			HairpinBPF:  bpf,
			RandomFully: tables.RandomFully(),
			DropInvalid: dropInvalid,
		}
		if flavour != xtables.Legacy {
			o.MaxChains = nftMaxChains
		}
		if !affinity {
			log.Warn("cannot serve Services with session affinity: load the module "+affinityNeed.Module+" on the host", "family", f.String())
		}
		log.Info("using iptables", "family", f.String(), "flavour", string(flavour), "why", why, "version", tables.Version(),
			"hairpinByBPF", o.HairpinBPF, "randomFully", o.RandomFully, "chains", id.Prefix())
		kernel[f.Index()] = tables
		return p.engine(f, o), nil
	}, xtables.IsTransient)
	if err != nil {
		return nil, err
	}
	p.Listen = func(f fwd.Family) {
		err := kernel[f.Index()].Watch(ctx, []string{NAT.String(), Filter.String()}, id.Prefix(), func(table, process string) {
			p.Drift.Send(backend.Drift{Family: f, What: "table " + table, Process: process})
		})
		if err != nil {
			log.Warn("cannot watch iptables; changes by other processes are only found by the periodic verification", "family", f.String(), "error", err)
		}
	}
	return p, nil
}

// Render prints all rules of a table for one family as input for iptables-restore --noflush, for a
// kernel with everything that FamilyOptions asks for. The same table gives the same bytes.
func Render(w io.Writer, family fwd.Family, o FamilyOptions, t *fwd.Table) error {
	p := plan{Upserts: chainsOf(family, o.options(), t), Actual: func(ChainID) (Chain, bool) { return Chain{}, false }}
	_, err := io.WriteString(w, names(o.Instance).Text(string(switchOver(p).input())))
	return err
}
