package e2e

import (
	"context"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

// testServiceCIDRs: in mode nftables what pods and nodes send to an address of a service CIDR that
// no Service has is dropped. Because nothing would answer at such an address anyway, the network of
// the client becomes a service CIDR for a while.
func testServiceCIDRs(t *testing.T, c *cluster) {
	want := probe.Refused // nothing listens there
	if c.mode == "nftables" {
		want = probe.Lost
	}
	// The daemon's watch of ServiceCIDRs is not ordered with that of Services, so settle does not
	// cover it.
	expect := func(when string, want probe.Verdict) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
		defer cancel()
		for f := range families {
			to := probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(c.hosts["client"].Addrs[f], 9)}
			if want == probe.Lost {
				to = to.Briefly()
			}
			for _, from := range []string{"node1-p3", "node1"} {
				if _, err := c.await(ctx, from, to, func(r probe.Result) bool { return r.Verdict == want }); err != nil {
					t.Errorf("%s: %v, want %s", when, err, want)
				}
			}
		}
	}
	expect("before", probe.Refused)
	cidr := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "clients"}}
	for _, p := range lab.ClientCIDRs {
		cidr.Spec.CIDRs = append(cidr.Spec.CIDRs, p.String())
	}
	api := c.client.NetworkingV1().ServiceCIDRs()
	_, err := api.Create(t.Context(), cidr, metav1.CreateOptions{})
	must(t, err)
	expect("while the client's network is a service CIDR", want)
	c.settle(t) // Services are served as ever
	must(t, api.Delete(t.Context(), cidr.Name, metav1.DeleteOptions{}))
	expect("after", probe.Refused)
}
