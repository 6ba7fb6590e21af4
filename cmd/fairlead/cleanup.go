package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nodelock"
	"github.com/fairlead/fairlead/internal/instance"
)

const cleanupUsage = `fairlead cleanup [flags]

Takes all that Fairlead has written out of this node's kernel: chains and jumps whose names begin with FAIRLEAD-, in both
userlands of iptables, the tables fairlead of nf_tables, and virtual servers of IPVS with the flag flag-3, their addresses on
kube-ipvs0, sets whose names begin with FAIRLEAD-, routes and rules of protocol 102; in both families. Where it served node ports on 127.0.0.1, it
sets net.ipv4.conf.all.route_localnet back to 0. Nobody else's rules are touched, and established connections go on, except those of mode
ipvs. End the daemon first. Doing it twice is harmless.

That goes for every instance (--service-proxy-name), whose names are FL-ABCDE-, fairlead-abcde, kube-ipvs-abcde and protocol 103, or with
--service-proxy-name for one of them alone. What belongs to an instance whose daemon runs stays, and is an error.

With --kube-proxy it takes out what kube-proxy left instead, in modes iptables, ipvs and nftables, while Fairlead may be running. End
kube-proxy first. What belongs to the kubelet and to others stays.`

func runCleanup(ctx context.Context, args []string, s streams) error {
	fs := pflag.NewFlagSet("fairlead cleanup", pflag.ContinueOnError)
	dryRun := fs.Bool("dry-run", false, "only say what would be removed")
	kubeProxy := fs.Bool("kube-proxy", false, "take out what kube-proxy left, in all of its modes, and nothing of Fairlead's")
	name := fs.String("service-proxy-name", "", "only the instance with this --service-proxy-name, or the one without if it is empty; all of them without this flag")
	var exclude []netip.Prefix
	fs.Var(prefixes{&exclude}, "ipvs-exclude-cidrs", "virtual servers of IPVS inside these stay")
	if err := parseFlags(fs, args, cleanupUsage, s); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only", fs.Arg(0))
	}
	if !mayAdminister() {
		return errors.New("no permission to change the kernel: run as root, or with the capabilities NET_ADMIN and NET_RAW")
	}
	if *kubeProxy {
		if fs.Changed("service-proxy-name") {
			return errors.New("--service-proxy-name and --kube-proxy: want one of them, kube-proxy has no instances")
		}
		return cleanupKubeProxy(ctx, exclude, *dryRun, s)
	}
	c := cleaner{streams: s, dryRun: *dryRun, verb: "removed", log: notesLogger(s, slog.LevelInfo)}
	if c.dryRun {
		c.verb = "would remove"
	}
	var ids []instance.ID
	if fs.Changed("service-proxy-name") {
		ids = append(ids, instance.Of(*name))
	}
	return c.run(ctx, exclude, ids)
}

// cleaner takes what instances left out of the kernel.
type cleaner struct {
	streams
	dryRun bool
	verb   string
	log    *slog.Logger
}

// run cleans up after the instances, all if none is given, whose daemons do not run.
func (c *cleaner) run(ctx context.Context, exclude []netip.Prefix, ids []instance.ID) error {
	rules, err := iptables.Leftovers(ctx)
	errs := []error{err}
	tables := make(map[instance.ID][]fwd.Family)
	for _, f := range fwd.Families {
		found, err := nftables.Leftovers(ctx, f)
		errs = append(errs, err)
		for _, id := range found {
			tables[id] = append(tables[id], f)
		}
	}
	virtual, closeAll, err := ipvs.Leftovers(ctx, exclude, ids...)
	defer closeAll()
	errs = append(errs, err)

	there := make(map[instance.ID]bool)
	for _, l := range rules {
		there[l.Instance] = true
	}
	for id := range tables {
		there[id] = true
	}
	for _, l := range virtual {
		there[l.Instance] = true
	}
	if len(ids) > 0 {
		maps.DeleteFunc(there, func(id instance.ID, _ bool) bool { return !slices.Contains(ids, id) })
	}
	if len(there) == 0 && errors.Join(errs...) == nil {
		fmt.Fprintln(c.out, "nothing of Fairlead's is in the kernel")
	}
	for _, id := range slices.Sorted(maps.Keys(there)) {
		release, err := c.hold(ctx, id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, l := range rules {
			if l.Instance == id {
				errs = append(errs, c.rules(ctx, l))
			}
		}
		for _, f := range tables[id] {
			errs = append(errs, c.table(ctx, id, f))
		}
		for _, l := range virtual { // after the rules that ask its sets
			if l.Instance == id {
				errs = append(errs, c.virtual(ctx, l))
			}
		}
		release()
	}
	return errors.Join(errs...)
}

// hold keeps a daemon of the instance from starting meanwhile. The error says that one runs.
func (c *cleaner) hold(ctx context.Context, id instance.ID) (release func(), err error) {
	var by nodelock.Process
	held := false
	if c.dryRun {
		release = func() {}
		by, held, err = nodelock.Look(ctx, id.Table())
	} else {
		var lock *nodelock.Lock
		if lock, err = nodelock.Acquire(ctx, id.Table(), nodelock.Process{Mode: "cleanup", Version: version()}); err == nil {
			release = lock.Release
		}
		var he *nodelock.HeldError
		if errors.As(err, &he) {
			by, held, err = he.By, true, nil
		}
	}
	switch {
	case held:
		fmt.Fprintf(c.out, "kept what belongs to %s, whose daemon runs: %s\n", id, by)
		return nil, fmt.Errorf("a daemon of %s runs on this node, and would write its rules again: end it first (%s)", id, by)
	case err != nil:
		c.log.Warn("cannot make sure that no daemon runs", "instance", id.String(), "error", err)
		return func() {}, nil
	}
	return release, nil
}

// of ends a line about an instance.
func of(id instance.ID) string {
	if id == 0 {
		return ""
	}
	return ", instance " + id.String()
}

func (c *cleaner) rules(ctx context.Context, l iptables.Leftover) error {
	if !c.dryRun {
		closeLoopback(ctx, l, c.log)
		if err := l.Remove(ctx); err != nil {
			return fmt.Errorf("clean up iptables, %s, %s%s: %w", l.Flavour, l.Family, of(l.Instance), err)
		}
	}
	fmt.Fprintf(c.out, "%s %d chains of iptables, %s, %s%s\n", c.verb, l.Chains, l.Flavour, l.Family, of(l.Instance))
	return nil
}

func (c *cleaner) table(ctx context.Context, id instance.ID, f fwd.Family) error {
	if !c.dryRun {
		if _, err := nftables.Remove(ctx, f, id); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.out, "%s the table %s of nf_tables, %s\n", c.verb, id.Table(), f)
	return nil
}

func (c *cleaner) virtual(ctx context.Context, l ipvs.Leftover) error {
	if !c.dryRun {
		if err := l.Remove(ctx); err != nil {
			return fmt.Errorf("clean up after mode ipvs, %s%s: %w", l.Family, of(l.Instance), err)
		}
	}
	fmt.Fprintf(c.out, "%s %d virtual servers, %d local addresses, %d sets, %d chains of table mangle and %d other objects of mode ipvs, %s%s\n",
		c.verb, l.Servers, l.VIPs, l.Sets, l.Chains, l.Other, l.Family, of(l.Instance))
	return nil
}
