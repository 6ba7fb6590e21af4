package oracle

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/internal/fwd"
)

// WriteYAML writes the objects as one v1 List, as `kubectl get -o yaml` does.
func (c *Cluster) WriteYAML(w io.Writer) error {
	list := struct {
		metav1.TypeMeta `json:",inline"`
		Items           []any `json:"items"`
	}{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
	for _, n := range c.Nodes {
		n = n.DeepCopy()
		n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
		list.Items = append(list.Items, n)
	}
	for _, s := range c.Services {
		s = s.DeepCopy()
		s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
		list.Items = append(list.Items, s)
	}
	for _, sl := range c.Slices {
		sl = sl.DeepCopy()
		sl.TypeMeta = metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"}
		list.Items = append(list.Items, sl)
	}
	for _, sc := range c.ServiceCIDRs {
		sc = sc.DeepCopy()
		sc.TypeMeta = metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "ServiceCIDR"}
		list.Items = append(list.Items, sc)
	}
	text, err := yaml.Marshal(list)
	if err != nil {
		return fmt.Errorf("write the cluster's objects as YAML: %w", err)
	}
	_, err = w.Write(text)
	return err
}

// Flags gives the settings as flags of the daemon.
func Flags(cfg *Config) []string {
	flags := []string{
		"--hostname-override=" + cfg.NodeName,
		fmt.Sprintf("--masquerade-all=%t", cfg.MasqueradeAll),
		fmt.Sprintf("--iptables-localhost-nodeports=%t", cfg.LocalhostNodePorts),
	}
	if cfg.NFTables {
		flags = append(flags, "--proxy-mode=nftables")
	}
	set := func(name, value string) {
		if value != "" {
			flags = append(flags, "--"+name+"="+value)
		}
	}
	set("detect-local-mode", cfg.DetectLocalMode)
	set("cluster-cidr", strings.Join(cfg.ClusterCIDRs, ","))
	set("pod-bridge-interface", cfg.BridgeInterface)
	set("pod-interface-name-prefix", cfg.InterfacePrefix)
	set("nodeport-addresses", strings.Join(cfg.NodePortAddresses, ","))
	set("bind-address", cfg.BindAddress)
	var gates []string
	for name, on := range cfg.Gates {
		gates = append(gates, fmt.Sprintf("%s=%t", name, on))
	}
	slices.Sort(gates)
	set("feature-gates", strings.Join(gates, ","))
	return flags
}

// TraceCommand is the command line that asks the product about a packet, with the cluster's objects
// in a file. It cannot tell of a packet with an address of the node itself as its source that
// arrives on an interface, since trace takes such a packet for one that the node sends.
func TraceCommand(file string, cfg *Config, p fwd.Packet) string {
	args := append([]string{"fairlead", "trace", "--objects=" + file}, Flags(cfg)...)
	if len(cfg.LocalAddresses) > 0 {
		args = append(args, "--local-addresses="+strings.Join(cfg.LocalAddresses, ","))
	}
	if p.InInterface != "" {
		args = append(args, "--in-interface="+p.InInterface)
	}
	args = append(args, p.Src.String(), fmt.Sprintf("'%s/%s'", p.Dst, p.Proto))
	return strings.Join(args, " ")
}

// Disagreement fails the test: it keeps the cluster's objects in a file, in dir or, if that is
// empty, in the directory for temporary files, and says how the packet can be asked about again.
// want is the oracle's answer, got the other one.
func Disagreement(t testing.TB, dir string, c *Cluster, cfg *Config, p fwd.Packet, want, got string) {
	t.Helper()
	f, err := os.CreateTemp(dir, "fairlead-disagreement-*.yaml")
	if err != nil {
		t.Fatalf("keep the objects of a disagreement: %v (oracle: %s; other: %s)", err, want, got)
	}
	err = c.WriteYAML(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		t.Fatalf("keep the objects of a disagreement in %s: %v", f.Name(), err)
	}
	t.Errorf("%s to %s/%s arriving on %q\n oracle: %s\n other:  %s\n replay: %s",
		p.Src, p.Dst, p.Proto, p.InInterface, want, got, TraceCommand(f.Name(), cfg, p))
}

// Shrink leaves out objects and entries of a cluster as long as fails still says that the failure
// is there. It returns a cluster from which nothing more can be left out.
func Shrink(c *Cluster, fails func(*Cluster) bool) *Cluster {
	for smaller := true; smaller; {
		smaller = false
		for _, try := range without(c) {
			if fails(try) {
				c, smaller = try, true
				break
			}
		}
	}
	return c
}

// without returns the clusters that lack one object, or one entry of one.
func without(c *Cluster) []*Cluster {
	var out []*Cluster
	less := func(change func(*Cluster)) {
		o := *c
		change(&o)
		out = append(out, &o)
	}
	for i := range c.Services {
		less(func(o *Cluster) { o.Services = cut(c.Services, i) })
	}
	for i := range c.Slices {
		less(func(o *Cluster) { o.Slices = cut(c.Slices, i) })
	}
	for i := range c.Nodes {
		less(func(o *Cluster) { o.Nodes = cut(c.Nodes, i) })
	}
	for i := range c.ServiceCIDRs {
		less(func(o *Cluster) { o.ServiceCIDRs = cut(c.ServiceCIDRs, i) })
	}
	for i, s := range c.Services {
		for _, smaller := range serviceWithout(s) {
			less(func(o *Cluster) { o.Services = slices.Replace(slices.Clone(c.Services), i, i+1, smaller) })
		}
	}
	for i, sl := range c.Slices {
		for _, smaller := range sliceWithout(sl) {
			less(func(o *Cluster) { o.Slices = slices.Replace(slices.Clone(c.Slices), i, i+1, smaller) })
		}
	}
	return out
}

func serviceWithout(s *v1.Service) []*v1.Service {
	var out []*v1.Service
	less := func(change func(*v1.Service)) {
		o := s.DeepCopy()
		change(o)
		out = append(out, o)
	}
	for i := range s.Spec.Ports {
		less(func(o *v1.Service) { o.Spec.Ports = cut(o.Spec.Ports, i) })
	}
	for i := range s.Spec.ExternalIPs {
		less(func(o *v1.Service) { o.Spec.ExternalIPs = cut(o.Spec.ExternalIPs, i) })
	}
	for i := range s.Spec.LoadBalancerSourceRanges {
		less(func(o *v1.Service) { o.Spec.LoadBalancerSourceRanges = cut(o.Spec.LoadBalancerSourceRanges, i) })
	}
	for i := range s.Status.LoadBalancer.Ingress {
		less(func(o *v1.Service) { o.Status.LoadBalancer.Ingress = cut(o.Status.LoadBalancer.Ingress, i) })
	}
	return out
}

func sliceWithout(sl *discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for i := range sl.Endpoints {
		o := sl.DeepCopy()
		o.Endpoints = cut(o.Endpoints, i)
		out = append(out, o)
	}
	for i := range sl.Ports {
		o := sl.DeepCopy()
		o.Ports = cut(o.Ports, i)
		out = append(out, o)
	}
	return out
}

// cut returns a copy of a list without one item.
func cut[T any](list []T, i int) []T { return slices.Delete(slices.Clone(list), i, i+1) }
