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

// Options are the settings of Find.
type Options struct {
	// ExcludeCIDRs are those of virtual servers that are somebody else's whatever they look like (ipvs.excludeCIDRs).
	ExcludeCIDRs []netip.Prefix
}

// Leftovers is what kube-proxy has left. Close it.
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

// Find looks for all that kube-proxy has left. What cannot be read is in the error, which may come beside a result. A
// kernel or a userland that a mode needs and that is not there has nothing of it.
func Find(ctx context.Context, o Options) (*Leftovers, error) {
	l := &Leftovers{}
	errs := []error{l.findChains(ctx), l.findVirtual(ctx, o), l.findTables(ctx)}
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

func (l *Leftovers) findVirtual(ctx context.Context, o Options) error {
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
	l.virtual, err = findVirtual(ctx, servers, sets, k, o.ExcludeCIDRs)
	return err
}

// hasIPVS says whether IPVS is in this kernel. Where it is not there is nothing in it, and opening it would load it.
func hasIPVS() bool {
	_, err := os.Stat("/proc/thread-self/net/ip_vs")
	return err == nil
}

// hasSets says the same of ip_set, which is named there also where it is built in.
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

// Removable says in words what there is to remove, one line for each group.
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

// Kept says what of kube-proxy's stays since somebody else uses it.
func (l *Leftovers) Kept() []string {
	var out []string
	for _, c := range l.chains {
		for _, k := range c.kept {
			out = append(out, fmt.Sprintf("%s, %s, %s", k, c.flavour, c.family))
		}
	}
	return out
}

// Remove takes it all out of the kernel: rules first, then what they lead to.
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
