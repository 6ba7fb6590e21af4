package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/kubeproxy"
)

// cleanupKubeProxy removes what kube-proxy left in the kernel, or with dryRun only says what it
// would remove.
func cleanupKubeProxy(ctx context.Context, exclude []netip.Prefix, dryRun bool, s streams) error {
	left, err := kubeproxy.Find(ctx, exclude)
	defer func() { _ = left.Close() }()
	errs := []error{err}
	for _, k := range left.Kept() {
		fmt.Fprintln(s.out, "kept", k)
	}
	open, err := loopbackLeftOpen(ctx)
	errs = append(errs, err)
	if open {
		fmt.Fprintln(s.out, "kept net.ipv4.conf.all.route_localnet, which is 1, as kube-proxy sets it for node ports on 127.0.0.1;"+
			" if nothing else needs it: sysctl -w net.ipv4.conf.all.route_localnet=0")
	}
	groups := left.Removable()
	if len(groups) == 0 && errors.Join(errs...) == nil {
		fmt.Fprintln(s.out, "the kernel has nothing of kube-proxy")
	}
	verb := "removed"
	if dryRun {
		verb = "would remove"
	} else if err := left.Remove(ctx); err != nil {
		return errors.Join(append(errs, fmt.Errorf("clean up after kube-proxy: %w", err))...)
	}
	for _, g := range groups {
		fmt.Fprintf(s.out, "%s kube-proxy's: %s\n", verb, g)
	}
	return errors.Join(errs...)
}

// loopbackLeftOpen says that route_localnet is set, and that no rules of Fairlead guard loopback
// addresses, so that it was not Fairlead who needs it. Who set it is unknown, and kube-proxy never
// clears it: other programs may rely on it by now.
func loopbackLeftOpen(ctx context.Context) (bool, error) {
	if !loopbackOpen() {
		return false, nil
	}
	left, err := iptables.Leftovers(ctx)
	if err != nil {
		return false, fmt.Errorf("look for rules that guard loopback addresses: %w", err)
	}
	return !slices.ContainsFunc(left, func(l iptables.Leftover) bool { return l.Guard }), nil
}
