package kubeproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

const (
	// canary is a chain that kube-proxy in mode iptables adds to each table, and adds again if it
	// is removed.
	canary = "KUBE-PROXY-CANARY"
	// clusterIPs is a set that kube-proxy always has in mode ipvs.
	clusterIPs = "KUBE-CLUSTER-IP"
)

// Signs describes the objects that show that kube-proxy has written to the kernel. It looks for one
// object per mode, whatever the number of Services, and changes nothing. The error names what
// cannot be read; there may be a result as well.
func Signs(ctx context.Context) ([]string, error) {
	var signs []string
	var errs []error
	for _, flavour := range xtables.Installed() {
		for _, family := range fwd.Families {
			t, err := xtables.New(flavour, family == fwd.IPv6)
			if errors.Is(err, xtables.ErrNotFound) {
				continue
			}
			there := false
			if err == nil {
				there, err = hasCanary(ctx, t)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("iptables, %s, %s: %w", flavour, family, err))
			} else if there {
				signs = append(signs, fmt.Sprintf("chain %s of iptables, %s, %s", canary, flavour, family))
			}
		}
	}
	there, err := hasSet(ctx)
	errs = append(errs, err)
	if there {
		signs = append(signs, "set "+clusterIPs)
	}
	for _, family := range fwd.Families {
		there, err := hasTable(ctx, family)
		errs = append(errs, err)
		if there {
			signs = append(signs, fmt.Sprintf("table %s of nf_tables, %s", nftTable, family))
		}
	}
	return signs, errors.Join(errs...)
}

// hasCanary reads table mangle, which has no rules for Services.
func hasCanary(ctx context.Context, t xtables.Interface) (bool, error) {
	chains, err := t.Read(ctx, "mangle")
	_, there := chains[canary]
	return there, err
}

func hasSet(ctx context.Context) (bool, error) {
	if !hasSets() {
		return false, nil
	}
	k, err := ipset.Open()
	if err != nil {
		return false, err
	}
	there, err := k.Exists(ctx, clusterIPs)
	return there, errors.Join(err, k.Close())
}

func hasTable(ctx context.Context, f fwd.Family) (bool, error) {
	c, err := nft.Open(f, nftTable)
	if err != nil {
		return false, fmt.Errorf("open nf_tables, %s: %w", f, err)
	}
	there, err := c.Exists(ctx)
	return there, errors.Join(err, c.Close())
}

// Address is where kube-proxy serves its mode and metrics.
const Address = "127.0.0.1:10249"

// probeTimeout is the timeout of requests to another process on this node.
const probeTimeout = 2 * time.Second

// Neighbour is the process that answers at kube-proxy's address.
type Neighbour struct {
	// Mode is its mode, or empty if it is neither a kube-proxy nor a Fairlead.
	Mode string
	// Fairlead is whether it is another Fairlead instead of a kube-proxy.
	Fairlead bool
}

// Running returns the process that answers at an address (Address, except in tests). Fairlead
// serves its mode there like kube-proxy, so the metrics decide which one it is. Call it before a
// server of this process listens there.
func Running(ctx context.Context, address string) Neighbour {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var mode string
	get(ctx, address, "/proxyMode", func(body io.Reader) {
		text, err := io.ReadAll(io.LimitReader(body, 64))
		if err == nil {
			mode = strings.TrimSpace(string(text))
		}
	})
	if !slices.Contains([]string{"iptables", "ipvs", "nftables", "userspace"}, mode) {
		return Neighbour{}
	}
	var n Neighbour
	get(ctx, address, "/metrics", func(body io.Reader) {
		lines := bufio.NewScanner(io.LimitReader(body, maxMetrics))
		for lines.Scan() {
			switch line := lines.Text(); {
			case strings.HasPrefix(line, "fairlead_"): // Fairlead has kube-proxy's metrics too
				n = Neighbour{mode, true}
				return
			case strings.HasPrefix(line, "kubeproxy_"):
				n = Neighbour{mode, false}
			}
		}
	})
	return n
}

// maxMetrics limits how much of the metrics is read.
const maxMetrics = 8 << 20

// get calls read with the body of a successful response. It ignores errors.
func get(ctx context.Context, address, path string, read func(io.Reader)) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy: it is a request to this node
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		read(resp.Body)
	}
}
