package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/fairlead/fairlead/hack/guest"
)

// kernel is Debian's name for user-mode Linux.
const kernel = "linux.uml"

func main() {
	guest.Init()
	guest.Main(uml)
}

var uml = guest.Kernel{Name: "uml", Timeout: 10 * time.Minute, Command: newGuest}

// newGuest returns the process of a guest, not yet started.
func newGuest(ctx context.Context, dir, memory string, j guest.Job) (*exec.Cmd, error) {
	program, err := exec.LookPath(kernel)
	if err != nil {
		return nil, fmt.Errorf("%w; install it with hack/deps.sh uml", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	j.Host, j.Modules = "uml", "/usr/lib/uml/modules"
	j.Stdout, j.Stderr, j.Verdict = "/dev/tty1", "/dev/tty2", "/dev/tty3"
	for _, w := range j.Writable {
		j.Shares = append(j.Shares, guest.Mount{Kind: "hostfs", Dir: w, Options: w})
	}
	path := filepath.Join(dir, "job")
	if err := j.Write(path); err != nil {
		return nil, err
	}
	g := exec.Command(program, "mem="+memory, "rootfstype=hostfs", "rootflags=/", "ro", "init="+self, guest.EnvJob+"="+path,
		// A panic ends the guest at once. So does an oops, because tests after it prove nothing.
		"panic=-1", "oops=panic",
		// Only warnings and worse; messages about links and modules would hide them.
		"loglevel=5",
		"uml_dir="+dir, "umid=guest",
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "con2=null,fd:4", "con3=null,fd:5")
	// The guest's memory is a file that the kernel creates and unlinks, in a tmpfs unless a
	// variable says otherwise.
	g.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	// The kernel's environment does not reach the guest, so no program there gets the library.
	if library, err := preload(ctx); err != nil {
		return nil, err
	} else if library != "" {
		g.Env = append(g.Env, "LD_PRELOAD="+library)
	}
	return g, nil
}
