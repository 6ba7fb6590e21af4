package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// jobEnv is the kernel parameter, and thereby the variable of process 1, that holds the path of the job.
const jobEnv = "FAIRLEAD_UML_JOB"

// The guest's words on the third console.
const (
	saysStart = "start"
	saysEnd   = "end" // followed by the exit code
)

// job is what the guest shall do. It travels as JSON.
type job struct {
	Command  []string
	Dir      string
	Env      []string
	Writable []string // directories of the host, absolute and without symbolic links
}

// guest is process 1: it must not return before the machine is off, for that is a panic.
func guest(path string) {
	verdict, err := open("/dev/tty3")
	code := exitBroken
	if err == nil {
		code, err = prepareAndRun(path, verdict)
	}
	if err != nil {
		fmt.Println("uml: in the guest:", err) // to the console of the kernel
	} else {
		unix.Sync()
		fmt.Fprintln(verdict, saysEnd, code)
		drain(verdict)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func prepareAndRun(path string, verdict *os.File) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	if err := root(j.Writable); err != nil {
		return 0, err
	}
	if err := network(); err != nil {
		return 0, err
	}
	stdout, err := open("/dev/tty1")
	if err != nil {
		return 0, err
	}
	stderr, err := open("/dev/tty2")
	if err != nil {
		return 0, err
	}
	fmt.Fprintln(verdict, saysStart)
	code := execute(j, stdout, stderr)
	drain(stdout)
	drain(stderr)
	return code, nil
}

// open opens a console as a pipe would be: without the line discipline's changes to what is written, and without making it
// the terminal of process 1.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	mode.Oflag &^= unix.OPOST
	mode.Lflag = 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, mode); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// drain waits until the host has taken what was written.
func drain(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) }

// root puts a layer of memory over the machine's files, makes that the root, and mounts what a system has.
func root(writable []string) error {
	var release unix.Utsname
	if err := unix.Uname(&release); err != nil {
		return err
	}
	modules := "/usr/lib/uml/modules/" + unix.ByteSliceToString(release.Release[:])
	// The kernel finds its modules only below the new root.
	if err := load(modules + "/kernel/fs/overlayfs/overlay.ko"); err != nil {
		return err
	}
	const memory = "/mnt"
	mount := func(kind, source, dir, options string, flags uintptr) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, dir, kind, flags, options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", kind, dir, err)
		}
		return nil
	}
	if err := mount("tmpfs", "tmpfs", memory, "", 0); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(memory, dir), 0o755); err != nil {
			return err
		}
	}
	newRoot := memory + "/root"
	if err := mount("overlay", "overlay", newRoot, "lowerdir=/,upperdir="+memory+"/upper,workdir="+memory+"/work", 0); err != nil {
		return err
	}
	// Mounts below take the place of what the host has there.
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"bpf", "/sys/fs/bpf", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", "ptmxmode=666"},
		{"tmpfs", "/dev/shm", ""},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := mount(m.kind, m.kind, newRoot+m.dir, m.options, 0); err != nil {
			return err
		}
	}
	for _, dir := range writable {
		if err := mount("hostfs", "none", newRoot+dir, dir, 0); err != nil {
			return err
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	// Kernel threads, which start modprobe, must follow: pivot_root takes them along, chroot does not.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	// In place of the machine's own modules, which this kernel cannot load even if they are of the same version.
	if err := mount("tmpfs", "tmpfs", "/lib/modules", "mode=755", 0); err != nil {
		return err
	}
	for name, to := range map[string]string{
		"/lib/modules/" + filepath.Base(modules): modules,
		// What a device manager adds to the kernel's nodes.
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	} {
		if err := os.Symlink(to, name); err != nil {
			return err
		}
	}
	return nil
}

// load loads a module that depends on no other.
func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// network gives the guest what every system has from its start on: a name, IPv6, which is a module here, and lo.
func network() error {
	if err := unix.Sethostname([]byte("uml")); err != nil {
		return fmt.Errorf("set the host's name: %w", err)
	}
	if out, err := exec.Command("/sbin/modprobe", "ipv6").CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe ipv6: %w: %s", err, out)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// execute runs the command and returns what a shell would: its exit code, or 128 and the signal that ended it, or 127 if
// there is no such program. Orphans become children of process 1 and are waited for, too.
func execute(j job, stdout, stderr *os.File) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "uml: %s: %v\n", j.Command[0], err)
		return 127
	}
	os.Clearenv()
	for _, kv := range j.Env {
		name, value, _ := strings.Cut(kv, "=")
		if err := os.Setenv(name, value); err != nil {
			return fail(err)
		}
	}
	if err := os.Chdir(j.Dir); err != nil {
		return fail(err)
	}
	program, err := exec.LookPath(j.Command[0])
	if err != nil {
		return fail(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fail(err)
	}
	pid, err := syscall.ForkExec(program, j.Command, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fail(err)
	}
	for {
		var status unix.WaitStatus
		switch done, err := unix.Wait4(-1, &status, 0, nil); {
		case err == unix.EINTR, err == nil && done != pid:
		case err != nil:
			return fail(err)
		case status.Signaled():
			return exitSignals + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}
