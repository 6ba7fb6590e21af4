package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// nftTable is the name of kube-proxy's tables in mode nftables.
const nftTable = "kube-proxy"

// Leftovers is what kube-proxy left. Close it after use.
type Leftovers struct {
	chains  []chainsOf
	virtual *virtual
	tables  []tableOf
	closers []io.Closer
}

type chainsOf struct {
	flavour xtables.Flavour
	family  fwd.Family
	*chains
}

type tableOf struct {
	family fwd.Family
	conn   *nft.Conn
}

// Find looks for everything that kube-proxy left. Virtual servers with addresses in exclude
// (ipvs.excludeCIDRs) belong to other programs. The error names what cannot be read; there may be a
// result as well. A missing kernel feature or userland is not an error.
func Find(ctx context.Context, exclude []netip.Prefix) (*Leftovers, error) {
	l := &Leftovers{}
	errs := []error{l.findChains(ctx), l.findVirtual(ctx, exclude), l.findTables(ctx)}
	return l, errors.Join(errs...)
}

func (l *Leftovers) findChains(ctx context.Context) error {
	var errs []error
	for _, flavour := range xtables.Installed() {
		for _, family := range fwd.Families {
			t, err := xtables.New(flavour, family == fwd.IPv6)
			if errors.Is(err, xtables.ErrNotFound) {
				continue
			}
			var found *chains
			if err == nil {
				found, err = findChains(ctx, t)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("iptables, %s, %s: %w", flavour, family, err))
			} else if !found.empty() || len(found.kept) > 0 {
				l.chains = append(l.chains, chainsOf{flavour, family, found})
			}
		}
	}
	return errors.Join(errs...)
}

func (l *Leftovers) findVirtual(ctx context.Context, exclude []netip.Prefix) error {
	var servers ipvs.Interface
	if hasIPVS() {
		k, err := ipvs.Open(ctx)
		switch {
		case err == nil:
			servers = k
			l.closers = append(l.closers, k)
		case !errors.Is(err, ipvs.ErrUnavailable):
			return err
		}
	}
	var sets ipset.Sets
	if hasSets() {
		k, err := ipset.Open()
		if err != nil {
			return err
		}
		sets = k
		l.closers = append(l.closers, k)
	}
	k, err := link.Open(0)
	if err != nil {
		return err
	}
	l.closers = append(l.closers, k)
	l.virtual, err = findVirtual(ctx, servers, sets, k, exclude)
	return err
}

// hasIPVS returns whether the kernel has IPVS loaded. Opening IPVS would load it.
func hasIPVS() bool {
	_, err := os.Stat("/proc/thread-self/net/ip_vs")
	return err == nil
}

// hasSets returns whether the kernel has ip_set. It is listed there even if it is built in.
func hasSets() bool {
	_, err := os.Stat("/sys/module/ip_set")
	return err == nil
}

func (l *Leftovers) findTables(ctx context.Context) error {
	var errs []error
	for _, family := range fwd.Families {
		c, err := nft.Open(family, nftTable)
		if err != nil {
			errs = append(errs, fmt.Errorf("open nf_tables, %s: %w", family, err))
			continue
		}
		l.closers = append(l.closers, c)
		there, err := c.Exists(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("look for table %s of nf_tables, %s: %w", nftTable, family, err))
		} else if there {
			l.tables = append(l.tables, tableOf{family, c})
		}
	}
	return errors.Join(errs...)
}

// Close ends the connections to the kernel.
func (l *Leftovers) Close() error {
	var errs []error
	for _, c := range l.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Removable describes what Remove removes, one line per kind.
func (l *Leftovers) Removable() []string {
	var out []string
	for _, c := range l.chains {
		if n, jumps := c.count(); n > 0 {
			out = append(out, fmt.Sprintf("%d chains of iptables, %s, %s, and %d jumps to them", n, c.flavour, c.family, jumps))
		}
	}
	if v := l.virtual; v != nil {
		if n := len(v.delServers); n > 0 {
			out = append(out, fmt.Sprintf("%d virtual servers of IPVS", n))
		}
		if n := len(v.delAddrs); n > 0 {
			out = append(out, fmt.Sprintf("%d addresses of %s", n, Device))
		}
		if v.delDevice {
			out = append(out, "the device "+Device)
		}
		if n := len(v.delSets); n > 0 {
			out = append(out, fmt.Sprintf("%d sets of ip_set (%s)", n, strings.Join(v.delSets, ", ")))
		}
	}
	for _, t := range l.tables {
		out = append(out, fmt.Sprintf("the table %s of nf_tables, %s", nftTable, t.family))
	}
	return out
}

// Kept describes what stays because other programs use it.
func (l *Leftovers) Kept() []string {
	var out []string
	for _, c := range l.chains {
		for _, k := range c.kept {
			out = append(out, fmt.Sprintf("%s, %s, %s", k, c.flavour, c.family))
		}
	}
	return out
}

// Remove removes everything from the kernel: first the rules, then what they use.
func (l *Leftovers) Remove(ctx context.Context) error {
	var errs []error
	for _, c := range l.chains {
		if err := c.remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("iptables, %s, %s: %w", c.flavour, c.family, err))
		}
	}
	for _, t := range l.tables {
		if err := t.conn.Commit(ctx, []nft.Op{{Kind: nft.DelTable}}); err != nil {
			errs = append(errs, fmt.Errorf("delete table %s of nf_tables, %s: %w", nftTable, t.family, err))
		}
	}
	if l.virtual != nil {
		errs = append(errs, l.virtual.removeServers(ctx), l.virtual.removeSets(ctx))
	}
	return errors.Join(errs...)
}
