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

// kernel is user-mode Linux as Debian calls it.
const kernel = "linux.uml"

func main() {
	guest.Init()
	guest.Main(uml)
}

var uml = guest.Kernel{Name: "uml", Timeout: 10 * time.Minute, Command: newGuest}

// newGuest is the process of a guest, not yet started.
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
		// A panic ends the guest at once; an oops is one, for what a kernel does after it proves nothing.
		"panic=-1", "oops=panic",
		// Warnings and worse. What it says about each link and module hides them.
		"loglevel=5",
		"uml_dir="+dir, "umid=guest",
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "con2=null,fd:4", "con3=null,fd:5")
	// The guest's memory is a file that the kernel creates and unlinks; it prefers a tmpfs if no variable says otherwise.
	g.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	// The kernel's own environment does not reach the guest, so that the library is in no program there.
	if library, err := preload(ctx); err != nil {
		return nil, err
	} else if library != "" {
		g.Env = append(g.Env, "LD_PRELOAD="+library)
	}
	return g, nil
}
