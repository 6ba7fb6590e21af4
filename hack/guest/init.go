package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnvJob is the kernel parameter that holds the path of the job. The kernel passes it to process 1
// as a variable.
const EnvJob = "FAIRLEAD_GUEST_JOB"

// The lines that the guest writes to the verdict console begin with these words.
const (
	verdictStart = "start"
	verdictEnd   = "end" // followed by the exit code
)

// Job is what the guest runs. It is passed as JSON.
type Job struct {
	Command  []string
	Dir      string
	Env      []string
	Writable []string // directories of the host, absolute and without symbolic links

	// The fields below depend on the kernel; Kernel.Command sets them.

	// Host is the guest's host name.
	Host string
	// Stdout, Stderr and Verdict are the consoles for the command's output, its errors, and its
	// start and exit code.
	Stdout, Stderr, Verdict string
	// Insert lists module files to load first, in this order.
	Insert []string
	// Root mounts the machine's files, for a kernel that boots from an initramfs.
	Root *Mount
	// Modules is the directory with the kernel's modules, in a subdirectory named after its
	// release.
	Modules string
	// Shares are the writable directories.
	Shares []Mount
}

// Mount holds the arguments of mount(2).
type Mount struct {
	Kind, Source, Dir, Options string
	Flags                      uintptr
}

func (m Mount) mount(below string) error {
	dir := below + m.Dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.Source, dir, m.Kind, m.Flags, m.Options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.Kind, dir, err)
	}
	return nil
}

// Init runs as process 1 of a guest and does not return there; elsewhere it does nothing. A program
// that starts guests calls it first.
func Init() {
	path := os.Getenv(EnvJob)
	if path == "" || os.Getpid() != 1 {
		return
	}
	// Process 1 must not end before the machine is off: that would be a panic.
	if err := work(path); err != nil {
		fmt.Println("in the guest:", err) // to the console of the kernel
	} else {
		// The host kills the guest when it has the verdict. Console output of the power-off is not
		// about the command.
		time.Sleep(time.Minute)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func work(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var j Job
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, module := range j.Insert {
		if err := load(module); err != nil {
			return err
		}
	}
	if j.Root != nil {
		if err := enter(*j.Root); err != nil {
			return err
		}
	}
	verdict, err := open(j.Verdict)
	if err != nil {
		return err
	}
	code, err := prepareAndRun(j, verdict)
	if err != nil {
		return err
	}
	unix.Sync()
	fmt.Fprintln(verdict, verdictEnd, code)
	drain(verdict)
	return nil
}

func prepareAndRun(j Job, verdict *os.File) (int, error) {
	if err := root(j); err != nil {
		return 0, err
	}
	if err := network(j.Host); err != nil {
		return 0, err
	}
	stdout, err := open(j.Stdout)
	if err != nil {
		return 0, err
	}
	stderr, err := open(j.Stderr)
	if err != nil {
		return 0, err
	}
	fmt.Fprintln(verdict, verdictStart)
	code := execute(j, stdout, stderr)
	drain(stdout)
	drain(stderr)
	return code, nil
}

// open opens a console that behaves like a pipe: the line discipline does not change the output,
// and it does not become the terminal of process 1.
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

// drain waits until the host has read everything.
func drain(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) }

// enter makes a file system the root. It replaces the initramfs, from which pivot_root is not
// possible.
func enter(m Mount) error {
	if err := m.mount(""); err != nil {
		return err
	}
	// Devices are needed before root mounts everything else.
	if err := (Mount{Kind: "devtmpfs", Source: "devtmpfs", Dir: "/dev"}).mount(m.Dir); err != nil {
		return err
	}
	if err := os.Chdir(m.Dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", m.Dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// root puts an in-memory layer over the machine's files, makes that the root, and mounts what every
// system has.
func root(j Job) error {
	var release unix.Utsname
	if err := unix.Uname(&release); err != nil {
		return err
	}
	modules := filepath.Join(j.Modules, unix.ByteSliceToString(release.Release[:]))
	// The kernel finds its modules only below the new root.
	if err := load(modules + "/kernel/fs/overlayfs/overlay.ko"); err != nil {
		return err
	}
	const newRoot = memory + "/root"
	if err := mountSystem(newRoot, j.Shares); err != nil {
		return err
	}
	if err := pivot(newRoot); err != nil {
		return err
	}
	return populate(modules)
}

// memory is where the guest mounts its in-memory file system.
const memory = "/mnt"

// mountSystem mounts below dir the machine's files with an in-memory layer, and what every system
// has.
func mountSystem(dir string, shares []Mount) error {
	if err := (Mount{Kind: "tmpfs", Source: "tmpfs", Dir: memory}).mount(""); err != nil {
		return err
	}
	for _, layer := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(memory, layer), 0o755); err != nil {
			return err
		}
	}
	// The later mounts hide what the host has in these directories.
	mounts := []Mount{
		{Kind: "overlay", Options: "lowerdir=/,upperdir=" + memory + "/upper,workdir=" + memory + "/work"},
		{Kind: "proc", Dir: "/proc"},
		{Kind: "sysfs", Dir: "/sys"},
		{Kind: "bpf", Dir: "/sys/fs/bpf"},
		{Kind: "cgroup2", Dir: "/sys/fs/cgroup"},
		{Kind: "devtmpfs", Dir: "/dev"},
		{Kind: "devpts", Dir: "/dev/pts", Options: "ptmxmode=666"},
		{Kind: "tmpfs", Dir: "/dev/shm"},
		{Kind: "tmpfs", Dir: "/run", Options: "mode=755"},
	}
	for _, m := range append(mounts, shares...) {
		if m.Source == "" {
			m.Source = m.Kind
		}
		if err := m.mount(dir); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes a directory the root and unmounts the old root.
func pivot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	// Kernel threads, which start modprobe, have to change their root as well: pivot_root does
	// that, chroot does not.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return os.Chdir("/")
}

// populate makes the directories and links of the new root that the machine's files lack.
func populate(modules string) error {
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	// This hides the machine's own modules, which another kernel cannot load even if they are of
	// the same version.
	if err := (Mount{Kind: "tmpfs", Source: "tmpfs", Dir: "/lib/modules", Options: "mode=755"}).mount(""); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"/lib/modules/" + filepath.Base(modules): modules,
		// A device manager adds these to the kernel's device nodes.
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	} {
		if err := os.Symlink(target, name); err != nil {
			return err
		}
	}
	return nil
}

// load loads a module whose dependencies are loaded.
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

// network sets up what every system has from the start: a host name, IPv6, which may be a module
// here, and lo.
func network(host string) error {
	if err := unix.Sethostname([]byte(host)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
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

// execute runs the command and returns its exit code as a shell does: 128 plus the number of the
// signal that ended it, or 127 if there is no such program. It also reaps orphans, which become
// children of process 1.
func execute(j Job, stdout, stderr *os.File) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", j.Command[0], err)
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
