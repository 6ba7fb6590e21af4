// Command demo shows Fairlead at work: it makes a cluster of network namespaces on this machine,
// runs a real fairlead on each of its two nodes and makes real connections. It checks each result
// and exits with code 1 if one is not as expected.
//
//	objects.yaml ─► fairlead on node1, node2 ─► kernel ◄─ connections ─ steps.go ─► what the pods see
//
// It needs root and leaves nothing behind, also after Ctrl-C. "make demo" builds and runs it. On a
// kernel without IPVS, MODE=ipvs runs in user-mode Linux.
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
	mode := flag.String("mode", "iptables", "the mode of fairlead: iptables, nftables or ipvs")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *binary, *mode)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("\nDone. Everything the demo made on this machine is removed.")
}

// demo is the cluster and what runs in it.
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
	fmt.Printf("%s\nThis cluster is made of %d network namespaces on this machine. Creating it took %v.\n",
		picture, 4+len(d.lab.Pods()), time.Since(start).Round(time.Millisecond))
	return d.play(ctx)
}

// play runs the steps and stops at the first that fails.
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
			return fmt.Errorf("step %d failed", d.step)
		}
		for _, line := range lines {
			fmt.Println("   ✓ " + line)
		}
	}
	return nil
}

// write replaces the file that the daemons read, atomically.
func (d *demo) write(text string) error {
	next := d.objects + ".new"
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(next, d.objects)
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

// dial makes the given number of connections, one after the other. It fails if one is not answered.
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
