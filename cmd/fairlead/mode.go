package main

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/metrics"
)

// mode is one dataplane that the operator can choose (--proxy-mode). Its value says everything that
// the command has to know about it: how to open it on this node, how to print its program, what it
// left in the kernel, and its metrics.
type mode struct {
	// metrics names the mode, and says which of kube-proxy's metrics it has.
	metrics metrics.Mode
	// open prepares this node's kernel and returns the dataplane. The error says what is missing
	// and what to do.
	open func(context.Context, setup) (*dataplane, error)
	// render prints the program of one family, as a kernel with all features gets it.
	render func(io.Writer, *config.Config, fwd.Family, *fwd.Table) error
	// leftovers finds what the mode left in the kernel, of all instances. It changes nothing. The
	// function frees what removing needs; it is never nil. What cannot be read is in the error;
	// there may be results nevertheless.
	leftovers func(context.Context, leftoverOptions) ([]leftover, func(), error)
	// retire removes what the mode left of this instance in one family. It is called when the
	// family's rules of the mode in use, which may be the same one, were found in the kernel.
	retire func(ctx context.Context, s setup, inUse *dataplane, f fwd.Family)

	// localVIPs says that the mode makes the Services' addresses local to the node; nil if it never
	// does.
	localVIPs func(*config.Config) bool
	// draining describes the endpoints behind a packet's destination that drain on this machine;
	// nil if nothing ever drains.
	draining func(context.Context, fwd.Packet) ([]string, error)
}

// modes lists the modes, in the order in which their leftovers are removed: rules before the sets
// that they use.
func modes() []mode { return []mode{iptablesMode, nftablesMode, ipvsMode} }

// modeOf returns the mode of a configuration.
func modeOf(cfg *config.Config) mode {
	all := modes()
	i := slices.IndexFunc(all, func(m mode) bool { return m.metrics.Name == string(cfg.Mode) })
	if i < 0 {
		panic("BUG: no dataplane for mode " + string(cfg.Mode)) // package config accepts no other name
	}
	return all[i]
}

// setup is what a mode works with.
type setup struct {
	cfg *config.Config
	log *slog.Logger
	// warn reports a Warning event on a Service.
	warn func(s fwd.Service, reason, message string)
	// spawn runs a function in a goroutine that the process waits for.
	spawn func(name string, fn func() error)
}

func (s setup) id() instance.ID { return instance.Of(s.cfg.ServiceProxyName) }

// dataplane is a mode on this node's kernel. A function or channel that a mode does not need is
// nil.
type dataplane struct {
	backend.Families
	mode string
	// iptables is the flavour of iptables in use; empty if the mode uses none.
	iptables string
	// written is called once for each family, when everything was written.
	written func(fwd.Family)
	// verified is called once for each family, when everything was found in the kernel and what
	// other modes left is removed.
	verified func(context.Context, fwd.Family)
	// drift receives a hint when other programs may have changed our objects.
	drift <-chan backend.Drift
	// finder returns the UDP frontends that an earlier process left in the kernel.
	finder backend.Finder
	// run works alongside the loop until the context ends.
	run func(context.Context)
	// metrics registers the metrics that only this mode has.
	metrics func(*metrics.Monitor)
	// init does what --init-only needs beyond opening.
	init func(context.Context) error
}

// retireOthers removes what other modes, or the same one with other tools, left in one family.
func retireOthers(ctx context.Context, s setup, p *dataplane, f fwd.Family) {
	for _, m := range modes() {
		m.retire(ctx, s, p, f)
	}
	if p.verified != nil {
		p.verified(ctx, f)
	}
}

// leftover is what one instance has in the kernel because its daemon runs, or ran, in some mode.
type leftover struct {
	instance instance.ID
	family   fwd.Family
	// what describes it, such as "12 chains of iptables, nft".
	what   string
	remove func(context.Context) error
}

// leftoverOptions limit what is looked for and removed.
type leftoverOptions struct {
	// exclude are the networks whose virtual servers stay.
	exclude []netip.Prefix
	// instances are those to look at; none stands for all.
	instances []instance.ID
	log       *slog.Logger
}

// findLeftovers finds what all modes left, in the order of removal. It returns the same as the
// modes' leftovers.
func findLeftovers(ctx context.Context, o leftoverOptions) (found []leftover, closeAll func(), errs []error) {
	var closers []func()
	for _, m := range modes() {
		left, closer, err := m.leftovers(ctx, o)
		found, closers, errs = append(found, left...), append(closers, closer), append(errs, err)
	}
	if len(o.instances) > 0 {
		found = slices.DeleteFunc(found, func(l leftover) bool { return !slices.Contains(o.instances, l.instance) })
	}
	return found, func() {
		for _, c := range closers {
			c()
		}
	}, errs
}
