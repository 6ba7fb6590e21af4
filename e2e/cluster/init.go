package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// InitArgument is the first argument of a process that is to be a node's init. A program that uses
// this package calls InitMain first thing in main.
const InitArgument = "fairlead-node-init"

// nodeSpec is what init needs to know; it is the second argument, as JSON.
type nodeSpec struct {
	// Name is the node's hostname, and Cgroup the name of its cgroup in each hierarchy.
	Name, Cgroup string
	// Dir is the node's directory on disk.
	Dir string
	// Files are written into the node's root file system: path to content.
	Files map[string]string
	// Binds are directories on disk, below Dir, that a node has at these paths.
	Binds map[string]string
}

// quietSysctls are settings of the whole machine that a kubelet changes. Each node has files in
// their place.
var quietSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

func init() {
	if len(os.Args) > 1 && os.Args[1] == InitArgument {
		// The cgroup namespace is a property of a thread, and nsenter(1) looks at the main one.
		runtime.LockOSThread()
	}
}

// InitMain never returns in a process that was started as a node's init, and does nothing in
// others.
func InitMain() {
	if len(os.Args) < 3 || os.Args[1] != InitArgument {
		return
	}
	var spec nodeSpec
	err := json.Unmarshal([]byte(os.Args[2]), &spec)
	if err == nil {
		err = spec.setUp()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "start node %s: %v\n", spec.Name, err)
		os.Exit(1)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	// The parent waits for this line. Standard output ends with it.
	fmt.Println("ready")
	for range children {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func (s nodeSpec) setUp() error {
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set the hostname: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	hierarchies, err := s.enterCgroups()
	if err != nil {
		return err
	}
	root, err := s.mountRoot()
	if err != nil {
		return err
	}
	if err := mountCgroups(root, hierarchies); err != nil {
		return err
	}
	for path, content := range s.Files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the machine's root: %w", err)
	}
	// The kubelet and containers with mount propagation need a shared tree.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s %s on %s: %w", m.fstype, m.source, m.target, err)
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// mountRoot mounts the node's root file system: the machine's, with changes kept in memory, and
// directories on disk for what containerd and the kubelet write.
func (s nodeSpec) mountRoot() (string, error) {
	memory := filepath.Join(s.Dir, "memory")
	if err := mountAll([]mount{{source: "tmpfs", target: memory, fstype: "tmpfs"}}); err != nil {
		return "", err
	}
	upper, work, root := filepath.Join(memory, "upper"), filepath.Join(memory, "work"), filepath.Join(memory, "root")
	for _, dir := range []string{upper, work, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	mounts := []mount{
		{source: "overlay", target: root, fstype: "overlay", data: fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work)},
		{source: "proc", target: root + "/proc", fstype: "proc"},
		{source: "sysfs", target: root + "/sys", fstype: "sysfs"},
		{source: "/dev", target: root + "/dev", flags: unix.MS_BIND | unix.MS_REC},
		{source: "tmpfs", target: root + "/run", fstype: "tmpfs"},
		{source: "tmpfs", target: root + "/tmp", fstype: "tmpfs"},
	}
	for path, dir := range s.Binds {
		mounts = append(mounts, mount{source: filepath.Join(s.Dir, dir), target: root + path, flags: unix.MS_BIND})
	}
	if err := mountAll(mounts); err != nil {
		return "", err
	}
	for _, name := range quietSysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		cover := filepath.Join(memory, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(cover, value, 0o644); err != nil {
			return "", err
		}
		if err := (mount{source: cover, target: filepath.Join(root, "proc/sys", name), flags: unix.MS_BIND}).do(); err != nil {
			return "", err
		}
	}
	return root, nil
}
