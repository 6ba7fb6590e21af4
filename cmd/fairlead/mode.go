package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/instance"
)

// dataplane is the backends of a mode with what belongs to them outside of the loop.
type dataplane struct {
	backend.Families
	// written, if not nil, is called once for each family, when everything was written.
	written func(fwd.Family)
	// verified is called once for each family, when everything was found in the kernel: nothing of another mode is needed any
	// more in that family.
	verified func(context.Context, fwd.Family)
	// drift receives when others may have changed what is ours; nil where the kernel does not say.
	drift <-chan backend.Drift
	// finder tells which frontends of UDP an earlier process left; nil where the mode does not know.
	finder backend.Finder
	// rules counts rules; nil where there are none to count.
	rules func() []iptables.RuleCount
	// run works beside the loop until the context ends.
	run func(context.Context)
	// draining says what drains, by fwd.Family.Index; nil where nothing ever does.
	draining func() [2]ipvs.Draining
}

// openDataplane opens the dataplane of a mode on this node's kernel. warn tells users about their Services.
func openDataplane(ctx context.Context, cfg *config.Config, warn func(s fwd.Service, reason, message string), log *slog.Logger) (dataplane, error) {
	id := instance.Of(cfg.ServiceProxyName)
	switch cfg.Mode {
	case config.ModeIPTables:
		p, err := iptables.Open(ctx, log, id, dropInvalid(log))
		if err != nil {
			return dataplane{}, err
		}
		narrow(ctx, id, log)
		old := newRetirement(cfg, log)
		return dataplane{Families: p.Families, finder: p.Found, rules: p.Rules, run: old.run, drift: p.Drift, written: p.Listen, verified: func(ctx context.Context, f fwd.Family) {
			routeLocalnet(cfg, f, log)
			iptables.RemoveOthers(ctx, id, p.Flavour, f, nil, log)
			removeNFTables(ctx, f, id, log)
			old.begin(f)
		}}, nil
	case config.ModeNFTables:
		p, err := nftables.Open(ctx, log, id)
		if err != nil {
			return dataplane{}, err
		}
		narrow(ctx, id, log)
		old := newRetirement(cfg, log)
		return dataplane{Families: p.Families, finder: p.Found, run: old.run, drift: p.Drift, written: func(fwd.Family) { p.Listen() }, verified: func(ctx context.Context, f fwd.Family) {
			iptables.RemoveOthers(ctx, id, "", f, func(l iptables.Leftover) { closeLoopback(ctx, l, log) }, log)
			old.begin(f)
		}}, nil
	case config.ModeIPVS:
		return openIPVS(ctx, cfg, id, warn, log)
	}
	return dataplane{}, fmt.Errorf("mode %q has no dataplane", cfg.Mode)
}

func openIPVS(ctx context.Context, cfg *config.Config, id instance.ID, warn func(s fwd.Service, reason, message string), log *slog.Logger) (dataplane, error) {
	vips, err := ipvs.ParseVIPMode(string(cfg.IPVS.VIP))
	if err != nil {
		return dataplane{}, fmt.Errorf("--ipvs-vip: %w", err)
	}
	o := ipvs.Options{
		Instance: id, NodeName: cfg.NodeName, VIPs: vips, Scheduler: cfg.IPVS.Scheduler, Exclude: cfg.IPVS.ExcludeCIDRs,
		Timeouts:     hostipvs.Timeouts{TCP: cfg.IPVS.TCPTimeout, TCPFin: cfg.IPVS.TCPFinTimeout, UDP: cfg.IPVS.UDPTimeout},
		DrainTimeout: cfg.IPVS.DrainTimeout, StrictARP: cfg.IPVS.StrictARP, Warn: warn,
	}
	for _, f := range fwd.Families {
		if a := cfg.PrimaryIP(cluster.Node{}, f); !a.IsLoopback() {
			o.NodeIP[f.Index()] = a
		}
	}
	p, err := ipvs.Open(ctx, log, o)
	if err != nil {
		return dataplane{}, err
	}
	// The rules of mode iptables go when those of this mode are written, and with them the guard of loopback addresses.
	if loopbackOpen() {
		left, err := iptables.Leftovers(ctx, fwd.IPv4)
		if err != nil {
			log.Debug("not all flavours of iptables can be read", "error", err)
		}
		for _, l := range left {
			if l.Instance == id {
				closeLoopback(ctx, l, log)
			}
		}
	}
	return dataplane{Families: p.Families, drift: p.Drift, run: p.Run, written: p.Listen, draining: p.Draining, verified: func(ctx context.Context, f fwd.Family) {
		iptables.RemoveOthers(ctx, id, p.Flavour, f, nil, log)
		removeNFTables(ctx, f, id, log)
		if err := p.Widen(ctx, f); err != nil {
			log.Warn("packets with the mark are routed by the addresses of virtual servers, as in a change of modes", "family", f.String(), "error", err)
		}
	}}, nil
}

// narrow keeps what --ipvs-vip=mark left from bringing to this node what the rules of another mode send to endpoints.
func narrow(ctx context.Context, id instance.ID, log *slog.Logger) {
	if err := ipvs.Narrow(ctx, id); err != nil {
		log.Warn("until what mode ipvs left is removed, new connections may fail", "error", err)
	}
}

// retirement removes what mode ipvs left, now that other rules are complete. Connections by way of virtual servers may end
// before, which takes time, so that it is a goroutine's work.
type retirement struct {
	cfg *config.Config
	log *slog.Logger
	due chan fwd.Family
}

func newRetirement(cfg *config.Config, log *slog.Logger) *retirement {
	return &retirement{cfg: cfg, log: log, due: make(chan fwd.Family, len(fwd.Families))}
}

// begin asks for it, once for each family. It does not wait.
func (r *retirement) begin(f fwd.Family) { r.due <- f }

// run works until the context ends, on both families at the same time. What it does not come to is left for the next start.
func (r *retirement) run(ctx context.Context) {
	var families sync.WaitGroup
	defer families.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-r.due:
			families.Go(func() {
				if err := r.retire(ctx, f); err != nil && ctx.Err() == nil {
					r.log.Warn("virtual servers of mode ipvs, or what belongs to them, stay in force", "family", f.String(), "error", err)
				}
			})
		}
	}
}

func (r *retirement) retire(ctx context.Context, f fwd.Family) error {
	left, closeAll, err := ipvs.Leftovers(ctx, r.cfg.IPVS.ExcludeCIDRs, instance.Of(r.cfg.ServiceProxyName))
	defer closeAll()
	errs := []error{err}
	for _, l := range left {
		if l.Family != f {
			continue
		}
		r.log.Info("removing what mode ipvs left, as soon as its connections have ended", "family", f.String(), "virtualServers", l.Servers, "vips", l.VIPs)
		err := l.Retire(ctx, cmp.Or(r.cfg.IPVS.DrainTimeout, retireTimeout))
		if err == nil {
			r.log.Info("removed what mode ipvs left", "family", f.String())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// retireTimeout is how long connections by way of virtual servers are kept after a change of modes: the kernel's own
// time-out of a connection without packets.
const retireTimeout = 15 * time.Minute

// removeNFTables takes out what mode nftables left, now that other rules are complete.
func removeNFTables(ctx context.Context, f fwd.Family, id instance.ID, log *slog.Logger) {
	switch removed, err := nftables.Remove(ctx, f, id); {
	case err != nil:
		log.Warn("the table of mode nftables stays in force", "family", f.String(), "error", err)
	case removed:
		log.Info("removed the table of mode nftables", "family", f.String())
	}
}

// render prints the program of one family as a kernel with all features gets it.
func render(w io.Writer, cfg *config.Config, f fwd.Family, t *fwd.Table) error {
	id := instance.Of(cfg.ServiceProxyName)
	switch cfg.Mode {
	case config.ModeIPTables:
		return iptables.Render(w, f, iptables.FamilyOptions{Instance: id, HairpinBPF: true, RandomFully: true, DropInvalid: true}, t)
	case config.ModeNFTables:
		return nftables.Render(w, f, id, t)
	case config.ModeIPVS:
		return renderIPVS(w, cfg, f, t)
	}
	return fmt.Errorf("mode %q has no text form", cfg.Mode)
}

func renderIPVS(w io.Writer, cfg *config.Config, f fwd.Family, t *fwd.Table) error {
	vips, err := ipvs.ParseVIPMode(string(cfg.IPVS.VIP))
	if err != nil {
		return fmt.Errorf("--ipvs-vip: %w", err)
	}
	o := ipvs.RenderOptions{Instance: instance.Of(cfg.ServiceProxyName), VIPs: vips, Scheduler: cfg.IPVS.Scheduler, Exclude: cfg.IPVS.ExcludeCIDRs, HairpinBPF: true, RandomFully: true}
	if a := cfg.PrimaryIP(cluster.Node{}, f); !a.IsLoopback() {
		o.NodeIP = a
	}
	return ipvs.Render(w, f, o, t)
}
