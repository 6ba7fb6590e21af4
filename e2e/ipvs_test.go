package e2e

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/ipset/ipsetfake"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// ipvsOf calls f with the IPVS of a node's kernel.
func ipvsOf(t *testing.T, n *lab.Node, f func(*hostipvs.Kernel) error) {
	t.Helper()
	must(t, n.Do(func() error {
		k, err := hostipvs.Open(t.Context())
		if err != nil {
			return err
		}
		return errors.Join(f(k), k.Close())
	}))
}

// virtualServers are those of a node, by protocol and address.
func virtualServers(t *testing.T, n *lab.Node) map[hostipvs.VirtualServer]hostipvs.Server {
	t.Helper()
	out := make(map[hostipvs.VirtualServer]hostipvs.Server)
	ipvsOf(t, n, func(k *hostipvs.Kernel) error {
		content, err := k.Read(t.Context())
		for _, s := range content.Servers {
			out[s.VirtualServer] = s
		}
		return err
	})
	return out
}

// serverAt names a virtual server of TCP.
func serverAt(a netip.Addr, port uint16) hostipvs.VirtualServer {
	return hostipvs.VirtualServer{Protocol: uint8(fwd.TCP), Addr: netip.AddrPortFrom(a, port)}
}

// weights are those of a virtual server's real servers, by the name of the host.
func (c *cluster) weights(t *testing.T, n *lab.Node, v hostipvs.VirtualServer) map[string]uint32 {
	t.Helper()
	out := make(map[string]uint32)
	for _, r := range virtualServers(t, n)[v].Reals {
		out[c.labelOf(r.Addr.Addr())] = r.Weight
	}
	return out
}

// awaitWeights waits for the weights of a cluster IP's real servers in both families.
func (c *cluster) awaitWeights(t *testing.T, n *lab.Node, svc *corev1.Service, want map[string]uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	for f, family := range families {
		for {
			got := c.weights(t, n, serverAt(clusterIP(svc, f), 80))
			if maps.Equal(got, want) {
				break
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %s has weights %v, want %v", n.Label, family, got, want)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// testVIPModes runs some of the groups with the other ways in which packets come to IPVS. The
// daemons change from one to the next without a clean-up.
func testVIPModes(t *testing.T, c *cluster) {
	if c.mode != "ipvs" {
		t.Skip("mode ipvs alone has --ipvs-vip")
	}
	for _, vips := range []string{"route", "mark"} {
		t.Run(vips, func(t *testing.T) {
			c.useVIPs(t, vips)
			for _, g := range []struct {
				name string
				run  func(*testing.T, *cluster)
			}{{"paths", testPaths}, {"hairpin", testHairpin}, {"changes", testChanges}} {
				t.Run(g.name, func(t *testing.T) { g.run(t, c) })
			}
		})
	}
}

// useVIPs restarts the daemons with another --ipvs-vip.
func (c *cluster) useVIPs(t *testing.T, vips string) {
	t.Helper()
	c.settle(t) // a daemon that has only just been started does not know how to end
	c.vips = vips
	c.flags = append(slices.DeleteFunc(slices.Clone(c.flags), func(f string) bool { return strings.HasPrefix(f, "--ipvs-vip=") }), "--ipvs-vip="+vips)
	for i := range c.lab.Nodes {
		c.restart(t, i)
	}
}

// putServers writes virtual servers, as another program does.
func putServers(t *testing.T, n *lab.Node, servers ...hostipvs.Server) {
	t.Helper()
	var ops []hostipvs.Op
	for _, s := range servers {
		ops = append(ops, hostipvs.Op{Verb: hostipvs.AddServer, Server: s.VirtualServer, Settings: s.Settings})
		for _, r := range s.Reals {
			ops = append(ops, hostipvs.Op{Verb: hostipvs.AddReal, Server: s.VirtualServer, Real: r.RealServer})
		}
	}
	ipvsOf(t, n, func(k *hostipvs.Kernel) error { return errors.Join(k.Apply(t.Context(), ops)...) })
}

// setsOf calls f with the sets of a node's kernel.
func setsOf(t *testing.T, n *lab.Node, f func(*ipset.Kernel) error) {
	t.Helper()
	must(t, n.Do(func() error {
		k, err := ipset.Open()
		if err != nil {
			return err
		}
		return errors.Join(f(k), k.Close())
	}))
}

// ourSets are Fairlead's sets on a node.
func ourSets(t *testing.T, n *lab.Node) (out []ipset.Content) {
	t.Helper()
	setsOf(t, n, func(k *ipset.Kernel) (err error) {
		out, err = k.List(t.Context(), "FAIRLEAD-")
		return err
	})
	return out
}

// dataplaneOf is all that mode ipvs has on a node, as text: virtual servers without their
// connections, sets, rules without counters, addresses, routes and rules for routing.
func dataplaneOf(t *testing.T, n *lab.Node) string {
	t.Helper()
	var lines []string
	for v, s := range virtualServers(t, n) {
		lines = append(lines, hostipvs.FormatServer(v, s.Settings))
		for _, r := range s.Reals {
			lines = append(lines, hostipvs.FormatReal(v, r.RealServer))
		}
	}
	lines = append(lines, strings.Split(ipsetfake.Save(ourSets(t, n)), "\n")...)
	for _, command := range [][]string{
		{"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"ip", "-o", "address"},
		{"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"}, {"ip", "rule"}, {"ip", "-6", "rule"},
	} {
		out, err := n.Run(t.Context(), command[0], command[1:]...)
		must(t, err)
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, counters.ReplaceAllString(strings.TrimSpace(line), "[0:0]"))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// flushIPVS deletes all virtual servers of the first node and the device with the VIPs.
func (c *cluster) flushIPVS(t *testing.T) {
	t.Helper()
	var ops []hostipvs.Op
	for v := range virtualServers(t, c.lab.Nodes[0]) {
		ops = append(ops, hostipvs.Op{Verb: hostipvs.DelServer, Server: v})
	}
	ipvsOf(t, c.lab.Nodes[0], func(k *hostipvs.Kernel) error { return errors.Join(k.Apply(t.Context(), ops)...) })
	_, err := c.lab.Nodes[0].Run(t.Context(), "ip", "link", "delete", ipvs.Device)
	must(t, err)
}

// nothingOfIPVS checks that the first node has nothing of mode ipvs.
func (c *cluster) nothingOfIPVS(t *testing.T) {
	t.Helper()
	node := c.lab.Nodes[0]
	must(t, node.Do(func() error {
		left, closeAll, err := ipvs.Leftovers(t.Context(), nil)
		defer closeAll()
		for _, l := range left {
			t.Errorf("left of mode ipvs: %+v", l)
		}
		return err
	}))
	if vs := virtualServers(t, node); len(vs) > 0 {
		t.Errorf("%d virtual servers are left", len(vs))
	}
	if _, err := node.Run(context.WithoutCancel(t.Context()), "ip", "link", "show", ipvs.Device); err == nil {
		t.Errorf("the device %s is left", ipvs.Device)
	}
}
