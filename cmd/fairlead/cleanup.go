package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/host/nodelock"
	"github.com/fairlead/fairlead/internal/instance"
)

const cleanupUsage = `fairlead cleanup [flags]

Removes everything that Fairlead wrote from this node's kernel, in both families: chains and jumps whose names begin with
FAIRLEAD-, in both userlands of iptables; the tables fairlead of nf_tables; virtual servers of IPVS with the flag flag-3, their
addresses on kube-ipvs0, sets whose names begin with FAIRLEAD-, and routes and rules of protocol 102. If it served node ports on
127.0.0.1, it sets net.ipv4.conf.all.route_localnet to 0. Rules of other programs stay. Established connections continue, except
those of mode ipvs. Stop the daemon first. Running it twice is harmless.

It cleans up after every instance (--service-proxy-name), whose names are FL-ABCDE-, fairlead-abcde, kube-ipvs-abcde and protocol
103; with --service-proxy-name only after that one. Objects of an instance whose daemon runs stay, and that is an error.

With --kube-proxy it removes what kube-proxy left instead, in modes iptables, ipvs and nftables. Fairlead may run meanwhile. Stop
kube-proxy first. Rules of the kubelet and of other programs stay.`

func runCleanup(ctx context.Context, args []string, s streams) error {
	fs := pflag.NewFlagSet("fairlead cleanup", pflag.ContinueOnError)
	dryRun := fs.Bool("dry-run", false, "only print what would be removed")
	kubeProxy := fs.Bool("kube-proxy", false, "remove what kube-proxy left, in all its modes, and nothing of Fairlead")
	name := fs.String("service-proxy-name", "", "only clean up after the instance with this --service-proxy-name, or after the one without a name if it is empty; default all")
	var exclude []netip.Prefix
	fs.Func("ipvs-exclude-cidrs", "keep the virtual servers of IPVS with addresses in these `CIDRs`", func(s string) error {
		for text := range strings.SplitSeq(s, ",") {
			prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
			if err != nil {
				return fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8", text)
			}
			exclude = append(exclude, prefix.Masked())
		}
		return nil
	})
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
			return errors.New("--service-proxy-name and --kube-proxy: use only one of them, kube-proxy has no instances")
		}
		return cleanupKubeProxy(ctx, exclude, *dryRun, s)
	}
	c := cleaner{streams: s, dryRun: *dryRun, log: notesLogger(s, slog.LevelInfo)}
	var ids []instance.ID
	if fs.Changed("service-proxy-name") {
		ids = append(ids, instance.Of(*name))
	}
	return c.run(ctx, exclude, ids)
}

// cleaner removes what instances left in the kernel.
type cleaner struct {
	streams
	dryRun bool
	log    *slog.Logger
}

// run cleans up after the given instances, or after all, except those whose daemon runs.
func (c *cleaner) run(ctx context.Context, exclude []netip.Prefix, ids []instance.ID) error {
	found, closeAll, errs := findLeftovers(ctx, leftoverOptions{exclude, ids, c.log})
	defer closeAll()
	if len(found) == 0 && errors.Join(errs...) == nil {
		fmt.Fprintln(c.out, "the kernel has nothing of Fairlead")
	}
	byInstance := make(map[instance.ID][]leftover)
	for _, l := range found {
		byInstance[l.instance] = append(byInstance[l.instance], l)
	}
	for _, id := range slices.Sorted(maps.Keys(byInstance)) {
		release, err := c.hold(ctx, id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, l := range byInstance[id] {
			errs = append(errs, c.remove(ctx, l))
		}
		release()
	}
	return errors.Join(errs...)
}

// remove removes one leftover, or with dryRun says that it would.
func (c *cleaner) remove(ctx context.Context, l leftover) error {
	what := fmt.Sprintf("%s, %s", l.what, l.family)
	if l.instance != 0 {
		what += ", instance " + l.instance.String()
	}
	verb := "would remove"
	if !c.dryRun {
		if err := l.remove(ctx); err != nil {
			return fmt.Errorf("remove %s: %w", what, err)
		}
		verb = "removed"
	}
	fmt.Fprintf(c.out, "%s %s\n", verb, what)
	return nil
}

// hold prevents a daemon of the instance from starting. If one runs it returns an error.
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
		fmt.Fprintf(c.out, "kept the objects of %s, whose daemon runs: %s\n", id, by)
		return nil, fmt.Errorf("a daemon of %s runs on this node and would write its rules again: stop it first (%s)", id, by)
	case err != nil:
		c.log.Warn("cannot check whether a daemon runs", "instance", id.String(), "error", err)
		return func() {}, nil
	}
	return release, nil
}
