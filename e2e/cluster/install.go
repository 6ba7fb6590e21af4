package cluster

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/lab"
)

//go:embed coredns.yaml
var corednsObjects string

// Kubectl runs kubectl as the administrator, with this standard input, and returns what it writes.
func (c *Cluster) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	cmd, err := c.KubectlCommand(ctx, args...)
	if err != nil {
		return "", err
	}
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %q: %w: %s", args, err, out)
	}
	return string(out), nil
}

// KubectlCommand is the command that Kubectl runs.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	config, err := c.AdminConfig()
	if err != nil {
		return nil, err
	}
	return c.Lab.Fabric.Command(ctx, filepath.Join(c.tools, "kubectl"), append([]string{"--kubeconfig=" + config}, args...)...), nil
}

// AdminConfig returns the path of the administrator's kubeconfig file.
func (c *Cluster) AdminConfig() (string, error) {
	path := filepath.Join(c.dir, "admin.conf")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	content, err := c.kubeconfig("admin")
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, []byte(content), 0o600)
}

// apply creates or updates the objects of a YAML document.
func (c *Cluster) apply(ctx context.Context, objects string) error {
	_, err := c.Kubectl(ctx, objects, "apply", "--server-side", "--force-conflicts", "-f", "-")
	return err
}

// InstallDNS installs CoreDNS and waits until it is ready.
func (c *Cluster) InstallDNS(ctx context.Context) error {
	if err := c.apply(ctx, corednsObjects); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, "", "rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=3m")
	return err
}

// An Installation is a way to bring a proxy to a cluster.
type Installation string

// The ways to install a proxy.
const (
	// KubeProxy is upstream's kube-proxy, as kubeadm installs it.
	KubeProxy Installation = "kube-proxy"
	// DropIn is kubeadm's DaemonSet of kube-proxy with Fairlead's image.
	DropIn Installation = "drop-in"
	// Kubeadm is manifests/kubeadm.
	Kubeadm Installation = "kubeadm"
	// Helm is manifests/chart.
	Helm Installation = "helm"
)

// Check reports whether a way can be installed in a mode on these nodes.
func (way Installation) Check(mode string) error {
	if !slices.Contains([]Installation{KubeProxy, DropIn, Kubeadm, Helm}, way) {
		return fmt.Errorf("unknown way to install a proxy: %q, want %s, %s, %s or %s", way, Kubeadm, DropIn, Helm, KubeProxy)
	}
	if mode != "iptables" && mode != "nftables" {
		return fmt.Errorf("mode %q: want iptables or nftables; mode ipvs needs a kernel of its own", mode)
	}
	return nil
}

// InstallProxy installs a proxy in a mode and waits until it is ready on all nodes.
func (c *Cluster) InstallProxy(ctx context.Context, way Installation, mode string) error {
	objects, err := c.proxyObjects(ctx, way, mode)
	if err != nil {
		return err
	}
	if err := c.apply(ctx, objects); err != nil {
		return err
	}
	name := "fairlead"
	if way == KubeProxy || way == DropIn {
		name = "kube-proxy"
	}
	_, err = c.Kubectl(ctx, "", "rollout", "status", "--namespace=kube-system", "daemonset/"+name, "--timeout=3m")
	return err
}

func (c *Cluster) proxyObjects(ctx context.Context, way Installation, mode string) (string, error) {
	module, err := apiserver.Module()
	if err != nil {
		return "", err
	}
	server := c.Lab.Fabric.Addrs[0]
	pods := lab.PodCIDRs[0].String() + "," + lab.PodCIDRs[1].String()
	switch way {
	case KubeProxy, DropIn:
		objects, err := os.ReadFile(filepath.Join(module, "e2e/testdata/kubeadm.yaml"))
		if err != nil {
			return "", err
		}
		image := FairleadImage
		if way == KubeProxy {
			image = ProxyImage
		}
		return strings.NewReplacer(
			"SERVER", fmt.Sprintf("https://%s", netip.AddrPortFrom(server, apiServerPort)), "POD_SUBNET", pods,
			"registry.k8s.io/kube-proxy:v1.36.3", image, `mode: ""`, fmt.Sprintf("mode: %q", mode),
			// The table of connection tracking belongs to the machine: a node cannot change its
			// size.
			"maxPerCore: null", "maxPerCore: 0",
		).Replace(string(objects)), nil
	case Kubeadm:
		args := []string{"kustomize", "manifests/kubeadm"}
		if mode == "nftables" {
			args = append(args, "manifests/nftables")
		}
		objects, err := render(ctx, module, args...)
		return strings.NewReplacer("192.0.2.10", server.String(), "registry.example.com/fairlead:latest", FairleadImage, "CLUSTER_CIDR: 10.244.0.0/16", "CLUSTER_CIDR: "+pods).Replace(objects), err
	case Helm:
		values := filepath.Join(c.dir, "values.yaml")
		text := fmt.Sprintf("mode: %s\nclusterCIDR: %q\napiServer: {host: %q, port: %d}\nimage: {repository: registry.example.com/fairlead, tag: lab}\n",
			mode, pods, server, apiServerPort)
		if err := os.WriteFile(values, []byte(text), 0o600); err != nil {
			return "", err
		}
		return render(ctx, module, "chart", "manifests/chart", values)
	}
	return "", way.Check(mode)
}

// apiServerPort is the port of the API server in the lab's fabric.
const apiServerPort = 6443

// render makes objects from the shipped manifests.
func render(ctx context.Context, module string, args ...string) (string, error) {
	for i, a := range args[1:] {
		if !filepath.IsAbs(a) {
			args[i+1] = filepath.Join(module, a)
		}
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"-C", filepath.Join(module, "hack/manifests"), "run", "."}, args...)...)
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("render %q: %w", args, err)
	}
	return string(out), nil
}
