package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchy is a mounted cgroup file system. Its name is its directory below /sys/fs/cgroup, which
// is empty where the machine has cgroups of version 2 alone.
type hierarchy struct{ name, fstype, options string }

// hierarchies reads which cgroup file systems the machine has.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 4 || (f[2] != "cgroup" && f[2] != "cgroup2") {
			continue
		}
		name, ok := strings.CutPrefix(f[1], cgroupRoot)
		if !ok {
			continue
		}
		h := hierarchy{name: strings.TrimPrefix(name, "/"), fstype: f[2]}
		if h.fstype == "cgroup" {
			h.options = controllers(f[3])
		}
		found = append(found, h)
	}
	return found, nil
}

// controllers leaves of a hierarchy's mount options what says which one it is.
func controllers(options string) string {
	var keep []string
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec":
		default:
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

// enterCgroups makes the node's cgroup in every hierarchy, moves this process into it, and makes it
// the root of a new cgroup namespace.
func (s nodeSpec) enterCgroups() ([]hierarchy, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		dir := filepath.Join(cgroupRoot, h.name, s.Cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		// A new cpuset has neither processors nor memory, and takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if h.fstype != "cgroup" || !strings.Contains(","+h.options+",", ",cpuset,") {
				continue
			}
			value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
			if err != nil {
				return nil, err
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return nil, err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return nil, fmt.Errorf("enter cgroup %s: %w", dir, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return nil, fmt.Errorf("make a cgroup namespace: %w", err)
	}
	return all, nil
}

// mountCgroups mounts the hierarchies below a node's root, as the node sees them.
func mountCgroups(root string, all []hierarchy) error {
	base := root + cgroupRoot
	var mounts []mount
	for _, h := range all {
		if h.name != "" && len(mounts) == 0 {
			mounts = append(mounts, mount{source: "tmpfs", target: base, fstype: "tmpfs"})
		}
		mounts = append(mounts, mount{source: h.fstype, target: filepath.Join(base, h.name), fstype: h.fstype, data: h.options})
	}
	return mountAll(mounts)
}

// removeCgroups removes the cgroups of nodes after their last processes have ended; name may be a
// pattern.
func removeCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		dirs, err := filepath.Glob(filepath.Join(cgroupRoot, h.name, name))
		errs = append(errs, err)
		for _, dir := range dirs {
			errs = append(errs, removeTree(dir))
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a cgroup and those below it. The files in them cannot be removed.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(append(errs, unix.Rmdir(dir))...)
}
