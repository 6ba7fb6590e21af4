package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/hack/guest"
)

const (
	// program is Debian's name for the emulator.
	program = "qemu-system-x86_64"
	// defaultRelease is the default kernel.
	defaultRelease = "6.1"
	// defaultAccel emulates each processor in a separate thread.
	defaultAccel = "tcg,thread=multi"
)

// fetch is the script that fetches a kernel and prints its directory.
//
//go:embed kernel
var fetch string

func main() {
	guest.Init()
	var m machine // its methods are called after the flags are parsed
	flag.StringVar(&m.release, "kernel", defaultRelease, "the `release` of the kernel, of those that hack/vm/kernel knows")
	flag.StringVar(&m.accel, "accel", defaultAccel, "qemu's `accelerator`")
	guest.Main(m.kernel())
}

// machine is an emulated machine.
type machine struct{ release, accel string }

func (m *machine) kernel() guest.Kernel {
	return guest.Kernel{Name: "vm", Timeout: 20 * time.Minute, Command: m.command}
}

// command returns the process of a guest, not yet started.
func (m *machine) command(ctx context.Context, dir, memory string, j guest.Job) (*exec.Cmd, error) {
	qemu, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("%w; install it with hack/deps.sh vm", err)
	}
	tree, err := m.tree(ctx)
	if err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("want one kernel in %s: %v, %v", tree, images, err)
	}
	_, version, _ := strings.Cut(filepath.Base(images[0]), "-")

	j.Host, j.Modules = "vm", filepath.Join(tree, "lib/modules")
	j.Stdout, j.Stderr, j.Verdict = "/dev/ttyS1", "/dev/ttyS2", "/dev/ttyS3"
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", m.accel, "-cpu", "max", "-smp", "2", "-m", memory,
	}
	for i, fd := range []int{1, 3, 4, 5} {
		args = append(args, "-chardev", fmt.Sprintf("file,id=c%d,path=/dev/fd/%d", i, fd), "-serial", fmt.Sprintf("chardev:c%d", i))
	}
	// Nothing changes below the root while a guest runs, so it may cache files.
	root, more := share("root", "/", "cache=loose,ro", ",readonly=on")
	root.Dir = "/root" // in the initramfs
	j.Root = &root
	args = append(args, more...)
	for i, w := range j.Writable {
		s, more := share(fmt.Sprintf("share%d", i), w, "cache=mmap", "")
		j.Shares = append(j.Shares, s)
		args = append(args, more...)
	}

	files, err := modules(ctx, tree, version, "virtio_pci", "9pnet_virtio", "9p")
	if err != nil {
		return nil, err
	}
	j.Insert = files
	jobFile := filepath.Join(dir, "job")
	if err := j.Write(jobFile); err != nil {
		return nil, err
	}
	self, err := static()
	if err != nil {
		return nil, err
	}
	initramfs := filepath.Join(dir, "initramfs")
	contents := []file{{"/init", self}, {"/job", jobFile}}
	for _, f := range files {
		contents = append(contents, file{f, f})
	}
	if err := writeArchive(initramfs, contents); err != nil {
		return nil, err
	}
	args = append(args, "-kernel", images[0], "-initrd", initramfs, "-append", strings.Join([]string{
		"console=ttyS0", guest.EnvJob + "=/job",
		// A panic ends the guest at once. So does an oops, because tests after it prove nothing.
		"panic=-1", "oops=panic",
		// Only warnings and worse; messages about links and modules would hide them.
		"loglevel=5",
		// An emulated processor may be stopped for seconds.
		"nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1", "tsc=nowatchdog",
		// These make system calls slower and are not needed for tests.
		"mitigations=off", "audit=0", "apparmor=0", "nokaslr",
	}, " "))
	return exec.Command(qemu, args...), nil
}

// static returns the path of this program, and an error if it is linked dynamically: the initramfs
// has no libraries.
func static() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := elf.Open(self)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return "", fmt.Errorf("%s is linked dynamically and cannot be the guest's process 1; build it with CGO_ENABLED=0", self)
	}
	return self, nil
}

// tree returns the directory of the kernel and its modules. It fetches them if necessary.
func (m *machine) tree(ctx context.Context) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "bash", "-c", fetch, "hack/vm/kernel", m.release)
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("fetch kernel %s: %w", m.release, err)
	}
	return strings.TrimSpace(out.String()), nil
}

// share returns the guest's mount of a directory of the host, and qemu's arguments for it.
func share(tag, dir, options, readonly string) (guest.Mount, []string) {
	// A comma in a qemu option has to be doubled.
	path := strings.ReplaceAll(dir, ",", ",,")
	return guest.Mount{Kind: "9p", Source: tag, Dir: dir, Options: "trans=virtio,version=9p2000.L,msize=512000," + options}, []string{
		"-fsdev", "local,id=" + tag + ",path=" + path + ",security_model=none,multidevs=remap" + readonly,
		"-device", "virtio-9p-pci,fsdev=" + tag + ",mount_tag=" + tag,
	}
}

// modules returns the files of the modules and their dependencies, dependencies first.
func modules(ctx context.Context, tree, version string, names ...string) ([]string, error) {
	var out []string
	seen := make(map[string]bool)
	for _, name := range names {
		cmd := exec.CommandContext(ctx, "modprobe", "--dirname", tree, "--set-version", version, "--show-depends", name)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		text, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("find the module %s: %w", name, err)
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			// "insmod FILE OPTIONS", or "builtin NAME".
			words := strings.Fields(lines.Text())
			if len(words) > 1 && words[0] == "insmod" && !seen[words[1]] {
				seen[words[1]] = true
				out = append(out, filepath.Clean(words[1]))
			}
		}
	}
	return out, nil
}
