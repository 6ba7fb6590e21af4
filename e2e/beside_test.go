package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

// besideEnv asks for TestBeside; its value is the number of Services.
const besideEnv = "FAIRLEAD_BESIDE"

// besideChanges is how many changes of one endpoint are measured.
const besideChanges = 12

// besideIPTables is up to how many Services kube-proxy's mode iptables takes part: with 10,000 it had not written its rules
// with the nft userland after 15 minutes.
const besideIPTables = 2000

// contestant is a proxy on a node of its own, with its figures.
type contestant struct {
	name   string
	binary string
	flags  []string
	node   *lab.Node
	svc    *corev1.Service

	cold    time.Duration
	changes []time.Duration
	cpu     time.Duration
}

// TestBeside is a benchmark: it loads Services of 10 endpoints into a real API server, runs Fairlead and kube-proxy one
// after the other, each on a fresh node, and prints what they take until the first connection through a Service is
// answered, from the write of a changed endpoint to the first connection that reaches it, and in CPU for such a change,
// child processes included. It judges nothing. "make bench-beside SERVICES=1000" runs it.
func TestBeside(t *testing.T) {
	n, err := strconv.Atoi(cmp.Or(os.Getenv(besideEnv), "0"))
	must(t, err)
	if n == 0 {
		t.Skipf("a benchmark: set %s to a number of Services", besideEnv)
	}
	lab.RequireKernel(t)
	ours, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	peer, err := exec.LookPath(cmp.Or(os.Getenv("FAIRLEAD_KUBE_PROXY"), "kube-proxy"))
	must(t, err)
	peerFlags := []string{"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"}
	contestants := []*contestant{
		{name: "fairlead nftables", binary: ours, flags: []string{"--proxy-mode=nftables"}},
		{name: "kube-proxy nftables", binary: peer, flags: append(peerFlags, "--proxy-mode=nftables")},
		{name: "fairlead iptables (nft)", binary: ours, flags: []string{"--proxy-mode=iptables"}},
	}
	if n <= besideIPTables {
		contestants = append(contestants, &contestant{name: "kube-proxy iptables (nft)", binary: peer, flags: append(peerFlags, "--proxy-mode=iptables")})
	}
	l := lab.ForTest(t, len(contestants), 3)
	c := &cluster{lab: l, hosts: map[string]lab.Host{}, dialers: map[string]*probe.Dialer{}}
	c.addHosts(t)
	c.api, err = apiserver.Start(t.Context(), apiserver.Config{Dir: t.TempDir(), Host: l.Fabric, Addr: l.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:]})
	must(t, err)
	t.Cleanup(func() { check(t, c.api.Close()) })
	c.client, err = c.api.Client(apiserver.Admin)
	must(t, err)
	c.addNodes(t)
	start := time.Now()
	c.fill(t, n)
	t.Logf("%d Services of 10 endpoints written in %v", n, time.Since(start).Round(time.Millisecond))
	kubeconfig, err := c.api.Kubeconfig(apiserver.Daemon)
	must(t, err)

	for i, p := range contestants {
		p.node = l.Nodes[i]
		p.flags = append(p.flags, "--kubeconfig="+kubeconfig, "--hostname-override="+p.node.Label,
			"--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String())
		p.svc = c.service(t, "probe-"+p.node.Label, func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		})
		c.endpoints(t, p.svc, ready(p.node.Pods[0].Label))
	}
	for _, p := range contestants {
		p.run(t, c)
	}
	t.Logf("Services: %d of 10 endpoints, changes: %d\n%s", n, besideChanges, table(contestants))
}

// fill writes Services whose endpoints are nowhere.
func (c *cluster) fill(t *testing.T, n int) {
	t.Helper()
	work := make(chan int)
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range work {
				if err := c.fillOne(t.Context(), i); err != nil {
					errs <- err
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
}

func (c *cluster) fillOne(ctx context.Context, i int) error {
	name := fmt.Sprintf("fill-%05d", i)
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{port("web", corev1.ProtocolTCP, 80)}},
	}
	if _, err := c.client.CoreV1().Services(namespace).Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("web"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8080)}},
	}
	for e := range 10 {
		a := netip.AddrFrom4([4]byte{10, byte(180 + e), byte(i >> 8), byte(i)})
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, NodeName: ptr.To("elsewhere")})
	}
	_, err := c.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, slice, metav1.CreateOptions{})
	return err
}

// run starts the proxy, measures and ends it.
func (p *contestant) run(t *testing.T, c *cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	guest := p.node.Pods[2].Label
	to := c.target(p.svc, path{to: "cluster"}, 0).Briefly()
	to.Timeout = 20 * time.Millisecond
	start := time.Now()
	d, err := daemon.Start(p.node, p.binary, p.flags...)
	must(t, err)
	defer func() { check(t, d.Kill()) }()
	if _, err := c.await(ctx, guest, to, func(r probe.Result) bool { return r.Verdict == probe.Answered }); err != nil {
		t.Fatalf("%s: %v\n%s", p.name, err, d.Log())
	}
	p.cold = time.Since(start)
	pause := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	pause(5 * time.Second) // what follows the first programming shall not count
	before, err := d.CPU()
	must(t, err)
	for i := range besideChanges {
		pod := p.node.Pods[(i+1)%2].Label
		c.endpoints(t, p.svc, ready(pod))
		written := time.Now()
		if _, err := c.await(ctx, guest, to, func(r probe.Result) bool { return r.Server == pod }); err != nil {
			t.Fatalf("%s: %v\n%s", p.name, err, d.Log())
		}
		p.changes = append(p.changes, time.Since(written))
		pause(2 * time.Second)
	}
	after, err := d.CPU()
	must(t, err)
	p.cpu = (after - before) / besideChanges
	slices.Sort(p.changes)
}

// table prints the figures, each of kube-proxy's with its ratio to Fairlead's above it.
func table(all []*contestant) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tcold start\tratio\tone change, median\tratio\tworst\tCPU a change\tratio\t")
	for i, p := range all {
		ratio := func(of func(*contestant) time.Duration) string {
			if i%2 == 0 {
				return ""
			}
			return fmt.Sprintf("%.1f", float64(of(p))/float64(max(of(all[i-1]), time.Millisecond)))
		}
		median := func(p *contestant) time.Duration { return p.changes[len(p.changes)/2] }
		fmt.Fprintf(w, "%s\t%v\t%s\t%v\t%s\t%v\t%v\t%s\t\n", p.name,
			p.cold.Round(time.Millisecond), ratio(func(p *contestant) time.Duration { return p.cold }),
			median(p).Round(time.Millisecond), ratio(median), p.changes[len(p.changes)-1].Round(time.Millisecond),
			p.cpu.Round(time.Millisecond), ratio(func(p *contestant) time.Duration { return p.cpu }))
	}
	w.Flush()
	return b.String()
}
