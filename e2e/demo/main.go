// Command demo shows Fairlead at work to somebody who has never seen it: a cluster made of network namespaces on this
// machine, one real fairlead on each of its two nodes, and real connections. It checks what it shows and ends with exit
// code 1 if something is not as it says.
//
//	objects.yaml ─► fairlead on node1, node2 ─► kernel ◄─ connections ─ steps.go ─► what the pods saw
//
// It needs root, and leaves nothing behind, also after Ctrl-C. "make demo" builds and runs it; MODE=ipvs on a kernel without
// IPVS means in user-mode Linux.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

//go:embed objects.yaml
var objects string

//go:embed picture.txt
var picture string

func main() {
	binary := flag.String("fairlead", "bin/fairlead", "the fairlead binary")
	mode := flag.String("mode", "iptables", "the dataplane that fairlead shall use")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *binary, *mode)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("\nThat was all. Nothing is left of it on this machine.")
}

// demo is the cluster on the stage.
type demo struct {
	lab     *lab.Lab
	binary  string
	mode    string
	objects string
	daemons []*daemon.Daemon
	servers []*probe.Server
	step    int
}

func run(ctx context.Context, binary, mode string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: sudo make demo")
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fairlead-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	d := &demo{binary: binary, mode: mode, objects: filepath.Join(dir, "objects.yaml")}
	start := time.Now()
	if d.lab, err = lab.New(2, 3); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.write(objects); err != nil {
		return err
	}
	for _, p := range d.lab.Pods() {
		s, err := probe.Serve(p, p.Label, p.Addrs[:], []string{"tcp"}, []uint16{8080})
		if err != nil {
			return err
		}
		d.servers = append(d.servers, s)
	}
	fmt.Printf("%s\nThe cluster above is made of %d network namespaces on this machine. Making it took %v.\n",
		picture, 4+len(d.lab.Pods()), time.Since(start).Round(time.Millisecond))
	return d.play(ctx)
}

// play runs the steps until one fails.
func (d *demo) play(ctx context.Context) error {
	for _, s := range steps {
		if s.mode != "" && s.mode != d.mode {
			continue
		}
		d.step++
		fmt.Printf("\n%d. %s\n", d.step, s.title)
		lines, err := s.run(d, ctx)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			fmt.Printf("   ✗ %v\n", err)
			for i, dm := range d.daemons {
				fmt.Fprintf(os.Stderr, "\nlog of fairlead on node%d:\n%s", i+1, dm.Log())
			}
			return fmt.Errorf("step %d is not as it should be", d.step)
		}
		for _, line := range lines {
			fmt.Println("   ✓ " + line)
		}
	}
	return nil
}

// write puts the objects where the daemons read them, all at once.
func (d *demo) write(text string) error {
	beside := d.objects + ".new"
	if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(beside, d.objects)
}

func (d *demo) start() error {
	for _, n := range d.lab.Nodes {
		dm, err := daemon.Start(n, d.binary, "--mode="+d.mode, "--objects="+d.objects, "--hostname-override="+n.Label,
			"--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String())
		if err != nil {
			return err
		}
		d.daemons = append(d.daemons, dm)
	}
	return nil
}

func (d *demo) close() error {
	var errs []error
	for _, dm := range d.daemons {
		errs = append(errs, dm.Kill())
	}
	for _, s := range d.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, d.lab.Close())...)
}

// dial opens so many connections from a host to an address, one after the other; all of them have to be answered.
func (d *demo) dial(ctx context.Context, from lab.Host, to string, times int) ([]probe.Result, error) {
	target := probe.Target{Proto: "tcp", Dst: netip.MustParseAddrPort(to)}
	results := probe.NewDialer(from).DialAll(ctx, repeat(target, times), 1)
	for i, r := range results {
		if r.Verdict != probe.Answered {
			return nil, fmt.Errorf("connection %d from %s to %s: %s", i+1, from.Label, to, r)
		}
	}
	return results, nil
}

func repeat(t probe.Target, times int) []probe.Target {
	all := make([]probe.Target, times)
	for i := range all {
		all[i] = t
	}
	return all
}
