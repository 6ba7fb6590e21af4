package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Node is a running node.
type Node struct {
	*lab.Node

	spec  nodeSpec
	init  *exec.Cmd
	tools string
}

const containerdConfig = `version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '` + pauseImage + `'
[plugins.'io.containerd.cri.v1.runtime']
  # Lowering oom_score_adj needs CAP_SYS_RESOURCE, which the machine may not give.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = 'runc'
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['/usr/lib/cni']
    conf_dir = '/etc/cni/net.d'
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: /etc/kubernetes/resolv.conf
enforceNodeAllocatable: []
localStorageCapacityIsolation: true
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", imagefs.inodesFree: "0%%"}
`

func cniConfig(n *lab.Node) string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": "lab",
  "plugins": [
    {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local",
      "ranges": [[{"subnet": %q}], [{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}`, n.PodCIDRs[0], n.PodCIDRs[1])
}

// newNode starts a node with containerd, and loads the images.
func (c *Cluster) newNode(ctx context.Context, host *lab.Node) (*Node, error) {
	n := &Node{Node: host, tools: c.tools, spec: nodeSpec{
		Name:   host.Label,
		Cgroup: filepath.Base(c.dir) + "-" + host.Label,
		Dir:    filepath.Join(c.dir, host.Label),
		Binds: map[string]string{
			"/var/lib/containerd": "containerd", "/var/lib/kubelet": "kubelet", "/var/log/pods": "pods", "/var/log/containers": "containers",
		},
	}}
	kubeconfig, err := c.kubeconfig("system:node:" + host.Label)
	if err != nil {
		return nil, err
	}
	n.spec.Files = map[string]string{
		"/etc/containerd/config.toml":    containerdConfig,
		"/etc/cni/net.d/10-lab.conflist": cniConfig(host),
		"/etc/kubernetes/kubelet.conf":   kubeconfig,
		"/etc/kubernetes/kubelet.yaml":   fmt.Sprintf(kubeletConfig, dnsAddr),
		"/etc/kubernetes/resolv.conf":    "nameserver 127.0.0.1\n",
		"/etc/hosts":                     "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/hostname":                  host.Label + "\n",
	}
	for _, dir := range n.spec.Binds {
		if err := os.MkdirAll(filepath.Join(n.spec.Dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	// Without link-local addresses, which a lab does not need, pods would not find their gateway.
	linkLocal := func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("0"), 0)
	}
	if err := n.Do(linkLocal); err != nil {
		return nil, err
	}
	if err := n.startInit(); err != nil {
		return nil, errors.Join(err, n.stop())
	}
	if err := n.startDaemon(ctx, "containerd", filepath.Join(n.tools, "containerd"), "--log-level=info"); err != nil {
		return n, err
	}
	return n, n.await(ctx, "containerd", func() error {
		_, err := n.Run(ctx, filepath.Join(n.tools, "ctr"), "version")
		return err
	})
}

func (n *Node) startInit() error {
	spec, err := json.Marshal(n.spec)
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	n.init = exec.Command("/proc/self/exe", InitArgument, string(spec))
	n.init.Stderr = &stderr
	stdout, err := n.init.StdoutPipe()
	if err != nil {
		return err
	}
	n.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := n.Do(n.init.Start); err != nil {
		n.init = nil
		return fmt.Errorf("start the init of %s: %w", n.Label, err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		_, _ = io.Copy(io.Discard, stdout)
		return fmt.Errorf("start the init of %s: %w: %s", n.Label, err, stderr.String())
	}
	return nil
}

// Command is exec.CommandContext for a process on the node: in all its namespaces. When the context
// ends, nsenter is killed, and the process goes on.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	pid := strconv.Itoa(n.init.Process.Pid)
	in := []string{"--target", pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(in, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+n.tools+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Run runs a command on the node and returns what it writes; the error holds that, too.
func (n *Node) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("on %s: %s %q: %w: %s", n.Label, name, args, err, out)
	}
	return string(out), nil
}

// startDaemon starts a process on the node that writes to /var/log/NAME.log and keeps its ID in
// /run/NAME.pid.
func (n *Node) startDaemon(ctx context.Context, name, path string, args ...string) error {
	script := fmt.Sprintf(`setsid sh -c 'echo $$ >/run/%[1]s.pid; exec "$@"' sh "$@" >>/var/log/pods/%[1]s.log 2>&1 </dev/null &`, name)
	_, err := n.Run(ctx, "sh", append([]string{"-c", script, "sh", path}, args...)...)
	return err
}

// Log returns the last lines of a daemon's log.
func (n *Node) Log(name string) string {
	log, err := os.ReadFile(filepath.Join(n.spec.Dir, "pods", name+".log"))
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-8000):])
}

func (n *Node) await(ctx context.Context, what string, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s on %s is not ready: %w\n%s", what, n.Label, err, n.Log(what))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// StartKubelet starts the kubelet.
func (n *Node) StartKubelet(ctx context.Context) error {
	return n.startDaemon(ctx, "kubelet", filepath.Join(n.tools, "kubelet"), "--config=/etc/kubernetes/kubelet.yaml",
		"--kubeconfig=/etc/kubernetes/kubelet.conf", "--hostname-override="+n.Label,
		"--node-ip="+n.Addrs[0].String()+","+n.Addrs[1].String())
}

// StopKubelet ends the kubelet; pods go on.
func (n *Node) StopKubelet(ctx context.Context) error {
	_, err := n.Run(ctx, "sh", "-c", "kill $(cat /run/kubelet.pid)")
	return err
}

// stop ends everything on the node.
func (n *Node) stop() error {
	if n.init == nil {
		return nil
	}
	if err := n.init.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", n.Label, err)
	}
	_ = n.init.Wait()
	n.init = nil
	var err error
	// The last processes leave their cgroups a moment after init is gone.
	for range 50 {
		if err = removeCgroups(n.spec.Cgroup); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// importImage loads an image archive into the node's containerd.
func (n *Node) importImage(ctx context.Context, path string) error {
	_, err := n.Run(ctx, filepath.Join(n.tools, "ctr"), "--namespace=k8s.io", "images", "import", "--local", path)
	return err
}
