package e2e

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab"
)

// testHealth requests the daemon's servers: from outside like load balancers, and on the node like
// Prometheus.
func testHealth(t *testing.T, c *cluster) {
	c.settle(t)
	node := c.lab.Nodes[0]
	for f, family := range families {
		for _, path := range []string{"/healthz", "/livez"} {
			code, _ := get(t, c.lab.Client, netip.AddrPortFrom(node.Addrs[f], 10256), path)
			if code != http.StatusOK {
				t.Errorf("%s %s from outside: %d", family, path, code)
			}
		}
	}
	local := netip.MustParseAddrPort("127.0.0.1:10249")
	if _, mode := get(t, node.Host, local, "/proxyMode"); mode != c.mode {
		t.Errorf("/proxyMode: %q", mode)
	}
	_, text := get(t, node.Host, local, "/metrics")
	for _, name := range []string{"kubeproxy_sync_proxy_rules_duration_seconds_count", "kubeproxy_sync_proxy_rules_last_timestamp_seconds"} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("/metrics: %s is missing", name)
		}
	}
}

// get requests a path from inside a host's namespace.
func get(t *testing.T, from lab.Host, to netip.AddrPort, path string) (int, string) {
	t.Helper()
	r, err := fetch(t.Context(), from, to, path, "")
	must(t, err)
	return r.code, string(r.body)
}
