package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// netnsDir is the directory of named namespaces of ip-netns(8).
const netnsDir = "/run/netns"

// Netns is a named network namespace. It is safe for concurrent use.
type Netns struct {
	// Name is its name in "ip netns".
	Name string

	ns netns.NsHandle
	nl *netlink.Handle
}

// newNetns makes a namespace with loopback up and the sysctls set, which has to happen before
// interfaces are added.
func newNetns(name string, sysctls []sysctl) (*Netns, error) {
	n := &Netns{Name: name}
	err := onOwnThread(func() error {
		var err error
		if n.ns, err = netns.NewNamed(name); err != nil {
			return err
		}
		for _, s := range sysctls {
			if err := s.write(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = netns.DeleteNamed(name)
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	if n.nl, err = netlink.NewHandleAt(n.ns); err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", name, err), n.close())
	}
	if err := n.up("lo"); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *Netns) close() error {
	if n.nl != nil {
		n.nl.Close()
	}
	return errors.Join(n.ns.Close(), netns.DeleteNamed(n.Name))
}

// Do calls f on a thread in the namespace. Sockets that f opens belong to the namespace and can be
// used anywhere afterwards. Goroutines that f starts are not in the namespace.
func (n *Netns) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(n.ns); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

// onOwnThread calls f with the goroutine locked to its thread and restores the thread's network
// namespace afterwards.
func onOwnThread(f func() error) error {
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the thread's network namespace: %w", err)
	}
	defer old.Close()
	err = f()
	if back := netns.Set(old); back != nil {
		// The thread stays locked, so that the runtime ends it with this goroutine and reuses it
		// for no other.
		return errors.Join(err, fmt.Errorf("restore the network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// Command is exec.CommandContext for a process in the namespace. The process id is that of the
// command. The process is killed when this process ends.
func (n *Netns) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := filepath.Join(netnsDir, n.Name)
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + path, "--", name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Run runs a command in the namespace and returns its output. An error contains the output, too.
func (n *Netns) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("in %s: %s %q: %w: %s", n.Name, name, args, err, out)
	}
	return string(out), nil
}

// sysctl is a value under /proc/sys. An optional one may be missing.
type sysctl struct {
	path, value string
	optional    bool
}

func (s sysctl) write() error {
	err := os.WriteFile(filepath.Join("/proc/sys", s.path), []byte(s.value), 0)
	if s.optional && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// hostSysctls are what every namespace of a lab has.
var hostSysctls = []sysctl{
	{path: "net/ipv4/conf/all/rp_filter", value: "0"},
	{path: "net/ipv4/conf/default/rp_filter", value: "0"},
	{path: "net/ipv6/conf/all/disable_ipv6", value: "0"},
	{path: "net/ipv6/conf/default/disable_ipv6", value: "0"},
	{path: "net/ipv6/conf/all/accept_dad", value: "0"},
	{path: "net/ipv6/conf/default/accept_dad", value: "0"},
	{path: "net/ipv6/conf/default/accept_ra", value: "0"},
	// No link-local addresses: nothing asks for them, and their router solicitations and MLD
	// reports are noise.
	{path: "net/ipv6/conf/default/addr_gen_mode", value: "1"},
	{path: "net/ipv4/icmp_ratelimit", value: "0"},
	{path: "net/ipv4/icmp_msgs_per_sec", value: "100000", optional: true},
	{path: "net/ipv4/icmp_msgs_burst", value: "10000", optional: true},
	{path: "net/ipv6/icmp/ratelimit", value: "0"},
	{path: "net/bridge/bridge-nf-call-iptables", value: "0", optional: true},
	{path: "net/bridge/bridge-nf-call-ip6tables", value: "0", optional: true},
}

// routerSysctls are what nodes and the fabric have beyond that.
var routerSysctls = []sysctl{
	{path: "net/ipv4/ip_forward", value: "1"},
	{path: "net/ipv4/conf/all/send_redirects", value: "0"},
	{path: "net/ipv4/conf/default/send_redirects", value: "0"},
	{path: "net/ipv6/conf/all/forwarding", value: "1"},
}
