package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/lab"
)

// startTimeout is how long one part of the cluster may take to become ready.
const startTimeout = 2 * time.Minute

// dnsAddr is the cluster IP of the cluster's name server.
var dnsAddr = netip.MustParseAddr("10.96.0.10")

// Config says how to build a cluster.
type Config struct {
	// Nodes is the number of nodes, 1 to 9.
	Nodes int
	// Dir is for the cluster's files, made by MakeDir; Close removes it.
	Dir string
	// Images are loaded into every node: archives in OCI layout.
	Images []string
	// Log takes a line for each step, and may be nil.
	Log func(format string, args ...any)
}

// dirPrefix begins the names of clusters' directories and cgroups; the owner's process ID follows.
const dirPrefix = "fairlead-cluster-"

// MakeDir makes a directory for a cluster below parent, which must be on a disk and not below /tmp
// or /run: nodes have their own. It removes what clusters of processes that were killed left there.
func MakeDir(parent string) (string, error) {
	old, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range old {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if _, err := os.Stat(filepath.Join("/proc", owner)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := errors.Join(removeCgroups(filepath.Base(dir)+"-*"), os.RemoveAll(dir)); err != nil {
			return "", fmt.Errorf("remove what an earlier cluster left: %w", err)
		}
	}
	return os.MkdirTemp(parent, fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
}

// Cluster is a running cluster.
type Cluster struct {
	Lab    *lab.Lab
	API    *apiserver.Server
	Client *kubernetes.Clientset
	Nodes  []*Node

	dir   string
	tools string
	procs []*exec.Cmd
}

// Up builds a cluster and returns when all its nodes are registered. They become ready when
// something programs Services, as far as that matters to them.
func Up(ctx context.Context, cfg Config) (*Cluster, error) {
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	c := &Cluster{dir: cfg.Dir}
	if err := c.up(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("build the cluster: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) up(ctx context.Context, cfg Config) error {
	var err error
	if c.tools, err = Tools(ctx); err != nil {
		return err
	}
	if c.Lab, err = lab.New(cfg.Nodes, 0); err != nil {
		return err
	}
	cfg.Log("starting the control plane")
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	for _, host := range c.Lab.Nodes {
		cfg.Log("starting %s", host.Label)
		n, err := c.newNode(ctx, host)
		if n != nil {
			c.Nodes = append(c.Nodes, n)
		}
		if err != nil {
			return err
		}
		for _, image := range cfg.Images {
			if err := n.importImage(ctx, image); err != nil {
				return err
			}
		}
		if err := c.register(ctx, n); err != nil {
			return err
		}
		if err := n.StartKubelet(ctx); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := n.await(ctx, "kubelet", func() error { return c.ready(ctx, n) }); err != nil {
			return err
		}
	}
	return nil
}

// register makes the Node object, with pod CIDRs that the lab routes.
func (c *Cluster) register(ctx context.Context, n *Node) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Label, Labels: map[string]string{"kubernetes.io/hostname": n.Label}},
		Spec:       corev1.NodeSpec{PodCIDR: n.PodCIDRs[0].String(), PodCIDRs: []string{n.PodCIDRs[0].String(), n.PodCIDRs[1].String()}},
	}
	_, err := c.Client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	return err
}

func (c *Cluster) ready(ctx context.Context, n *Node) error {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, n.Label, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("not ready: %s", condition.Message)
		}
	}
	return errors.New("not registered")
}

// startControlPlane starts etcd, the three servers, and a cloud for load balancers in the lab's
// fabric.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	dir := filepath.Join(c.dir, "control-plane")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	users := []apiserver.User{
		{Name: "system:kube-controller-manager"},
		{Name: "system:kube-scheduler"},
	}
	for _, n := range c.Lab.Nodes {
		users = append(users, apiserver.User{Name: "system:node:" + n.Label, Groups: []string{"system:nodes"}})
	}
	var err error
	c.API, err = apiserver.Start(ctx, apiserver.Config{
		Dir: dir, Host: c.Lab.Fabric, Addr: c.Lab.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:],
		RBAC: true, Pods: true, Users: users,
		Flags: []string{"--allow-privileged", "--kubelet-preferred-address-types=InternalIP", "--enable-admission-plugins=NodeRestriction"},
	})
	if err != nil {
		return err
	}
	if c.Client, err = c.API.Client(apiserver.Admin); err != nil {
		return err
	}
	for _, server := range []struct {
		name  string
		flags []string
	}{
		{"kube-controller-manager", []string{
			"--use-service-account-credentials", "--service-account-private-key-file=" + filepath.Join(dir, "sa.key"),
			"--root-ca-file=" + filepath.Join(dir, "certs/apiserver.crt"), "--allocate-node-cidrs=false", "--controllers=*,-nodeipam",
		}},
		{"kube-scheduler", nil},
	} {
		config, err := c.API.Kubeconfig("system:" + server.name)
		if err != nil {
			return err
		}
		flags := append([]string{"--kubeconfig=" + config, "--leader-elect=false", "--cert-dir=" + filepath.Join(dir, "certs")}, server.flags...)
		if err := c.run(server.name, flags...); err != nil {
			return err
		}
	}
	admin, err := c.AdminConfig()
	if err != nil {
		return err
	}
	return c.run("balancer", "--kubeconfig="+admin, "--ipv4="+lab.BalancerCIDRs[0].String(), "--ipv6="+lab.BalancerCIDRs[1].String())
}

// run starts a server of the control plane.
func (c *Cluster) run(name string, args ...string) error {
	log, err := os.Create(filepath.Join(c.dir, "control-plane", name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := c.Lab.Fabric.Command(context.Background(), filepath.Join(c.tools, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.procs = append(c.procs, cmd)
	return nil
}

// kubeconfig returns the content of a user's kubeconfig file.
func (c *Cluster) kubeconfig(user string) (string, error) {
	path, err := c.API.Kubeconfig(user)
	if err != nil {
		return "", err
	}
	content, err := os.ReadFile(path)
	return string(content), err
}

// Close ends everything and removes what the cluster left on disk.
func (c *Cluster) Close() error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.stop())
	}
	for _, p := range c.procs {
		if err := p.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
			continue
		}
		_ = p.Wait()
	}
	if c.API != nil {
		errs = append(errs, c.API.Close())
	}
	if c.Lab != nil {
		errs = append(errs, c.Lab.Close())
	}
	if c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}
