package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

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
	left, err := kubeproxy.Find(ctx, kubeproxy.Options{ExcludeCIDRs: exclude})
	defer func() { _ = left.Close() }()
	errs := []error{err}
	for _, k := range left.Kept() {
		fmt.Fprintln(s.out, "kept", k)
	}
	groups := left.Removable()
	if len(groups) == 0 && err == nil {
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
