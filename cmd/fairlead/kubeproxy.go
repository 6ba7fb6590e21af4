package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/kubeproxy"
)

// prefixes is a flag with a comma list of CIDRs.
type prefixes struct{ list *[]netip.Prefix }

func (p prefixes) Type() string { return "CIDRs" }

func (p prefixes) String() string {
	if p.list == nil {
		return ""
	}
	texts := make([]string, len(*p.list))
	for i, prefix := range *p.list {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}

func (p prefixes) Set(s string) error {
	for text := range strings.SplitSeq(s, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8", text)
		}
		*p.list = append(*p.list, prefix.Masked())
	}
	return nil
}

// cleanupKubeProxy takes what kube-proxy left out of the kernel, or with dryRun only says what it would take.
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
		fmt.Fprintln(s.out, "kept net.ipv4.conf.all.route_localnet, which is 1 as kube-proxy sets it for node ports on 127.0.0.1;"+
			" if nobody else needs it: sysctl -w net.ipv4.conf.all.route_localnet=0")
	}
	groups := left.Removable()
	if len(groups) == 0 && errors.Join(errs...) == nil {
		fmt.Fprintln(s.out, "nothing of kube-proxy's is in the kernel")
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

// loopbackLeftOpen says that route_localnet is set, and not for rules of Fairlead's that guard it. It cannot be said who set it,
// and kube-proxy has never taken it back: other programs that let 127.0.0.1 be reached may count on it by now.
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
