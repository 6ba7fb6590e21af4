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
	// canary is a chain that kube-proxy in mode iptables puts into each table, and puts back when it is gone.
	canary = "KUBE-PROXY-CANARY"
	// clusterIPs is a set that kube-proxy always has in mode ipvs.
	clusterIPs = "KUBE-CLUSTER-IP"
)

// Signs says by what one sees that kube-proxy has written to the kernel, in words; empty for nothing. It looks at one object
// for each mode, whatever the number of Services, and changes nothing. What cannot be looked at is in the error, which may
// come beside a result.
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

// hasCanary looks into table mangle, where there are no rules for Services.
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

// Address is where kube-proxy says its mode.
const Address = "127.0.0.1:10249"

// probeTimeout bounds a question to another process on this node.
const probeTimeout = 2 * time.Second

// Neighbour is who answers at kube-proxy's address.
type Neighbour struct {
	// Mode is its mode, empty where there is neither a kube-proxy nor a Fairlead.
	Mode string
	// Fairlead says that it is no kube-proxy but another Fairlead.
	Fairlead bool
}

// Running asks at an address (Address, except in tests) who runs there. That somebody tells a mode there is no proof that it is a
// kube-proxy, since Fairlead does so too: its metrics tell. It has to be asked before a server of this process listens there.
func Running(ctx context.Context, address string) Neighbour {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var mode string
	ask(ctx, address, "/proxyMode", func(body io.Reader) {
		text, err := io.ReadAll(io.LimitReader(body, 64))
		if err == nil {
			mode = strings.TrimSpace(string(text))
		}
	})
	if !slices.Contains([]string{"iptables", "ipvs", "nftables", "userspace"}, mode) {
		return Neighbour{}
	}
	var n Neighbour
	ask(ctx, address, "/metrics", func(body io.Reader) {
		lines := bufio.NewScanner(io.LimitReader(body, maxMetrics))
		for lines.Scan() {
			switch line := lines.Text(); {
			case strings.HasPrefix(line, "fairlead_"): // which has kube-proxy's metrics too
				n = Neighbour{mode, true}
				return
			case strings.HasPrefix(line, "kubeproxy_"):
				n = Neighbour{mode, false}
			}
		}
	})
	return n
}

// maxMetrics is how much is read of somebody's metrics.
const maxMetrics = 8 << 20

// ask reads an answer, if there is a good one.
func ask(ctx context.Context, address, path string, read func(io.Reader)) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy: the question is for this node
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		read(resp.Body)
	}
}
