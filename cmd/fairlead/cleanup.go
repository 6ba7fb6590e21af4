package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/fwd"
)

const cleanupUsage = `fairlead cleanup [flags]

Takes all that Fairlead has written out of this node's kernel: chains and jumps whose names begin with FAIRLEAD-, in both
userlands of iptables, the tables fairlead of nf_tables, and virtual servers of IPVS with the flag flag-3, their addresses on
kube-ipvs0, sets whose names begin with FAIRLEAD-, routes and rules of protocol 102; in both families. Where it served node ports on 127.0.0.1, it
sets net.ipv4.conf.all.route_localnet back to 0. Nobody else's rules are touched, and established connections go on, except those of mode
ipvs. End the daemon first. Doing it twice is harmless.

With --kube-proxy it takes out what kube-proxy left instead, in modes iptables, ipvs and nftables, while Fairlead may be running. End
kube-proxy first. What belongs to the kubelet and to others stays.`

func runCleanup(ctx context.Context, args []string, s streams) error {
	fs := pflag.NewFlagSet("fairlead cleanup", pflag.ContinueOnError)
	dryRun := fs.Bool("dry-run", false, "only say what would be removed")
	kubeProxy := fs.Bool("kube-proxy", false, "take out what kube-proxy left, in all of its modes, and nothing of Fairlead's")
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
		return cleanupKubeProxy(ctx, exclude, *dryRun, s)
	}
	left, err := iptables.Leftovers(ctx)
	errs := []error{err}
	verb := "removed"
	if *dryRun {
		verb = "would remove"
	}
	for _, l := range left {
		if !*dryRun {
			closeLoopback(l, notesLogger(s, slog.LevelInfo))
			if err := l.Remove(ctx); err != nil {
				errs = append(errs, fmt.Errorf("clean up iptables, %s, %s: %w", l.Flavour, l.Family, err))
				continue
			}
		}
		fmt.Fprintf(s.out, "%s %d chains of iptables, %s, %s\n", verb, l.Chains, l.Flavour, l.Family)
	}
	tables := 0
	for _, f := range fwd.Families {
		there, err := nftables.Remove(ctx, f, *dryRun)
		errs = append(errs, err)
		if there && err == nil {
			tables++
			fmt.Fprintf(s.out, "%s the table %s of nf_tables, %s\n", verb, nftables.TableName, f)
		}
	}
	virtual, err := cleanupIPVS(ctx, exclude, *dryRun, verb, s)
	errs = append(errs, err)
	if len(left)+tables+virtual == 0 && errors.Join(errs...) == nil {
		fmt.Fprintln(s.out, "nothing of Fairlead's is in the kernel")
	}
	return errors.Join(errs...)
}

// cleanupIPVS takes out what mode ipvs left, after the rules that ask its sets. It returns in how many families there was
// something.
func cleanupIPVS(ctx context.Context, exclude []netip.Prefix, dryRun bool, verb string, s streams) (int, error) {
	left, closeAll, err := ipvs.Leftovers(ctx, exclude)
	defer closeAll()
	errs := []error{err}
	for _, l := range left {
		if !dryRun {
			if err := l.Remove(ctx); err != nil {
				errs = append(errs, fmt.Errorf("clean up after mode ipvs, %s: %w", l.Family, err))
				continue
			}
		}
		fmt.Fprintf(s.out, "%s %d virtual servers, %d local addresses, %d sets, %d chains of table mangle and %d other objects of mode ipvs, %s\n",
			verb, l.Servers, l.VIPs, l.Sets, l.Chains, l.Other, l.Family)
	}
	return len(left), errors.Join(errs...)
}
