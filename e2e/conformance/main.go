// Command conformance runs upstream's end-to-end tests of the network on a cluster of real nodes on
// this machine, prints a table of what passed, failed and was skipped, and keeps the results in
// docs/conformance.md. "make conformance" calls it.
//
// It exits with code 1 if a test fails that exceptions.txt does not name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/e2e/cluster"
)

// options are the command's flags.
type options struct {
	mode, install string
	nodes, procs  int
	focus, skip   string
	dir, report   string
	update        string
	keep          bool
}

func main() {
	cluster.InitMain()
	var o options
	flag.StringVar(&o.mode, "mode", "iptables", "mode of the proxy: iptables or nftables")
	flag.StringVar(&o.install, "install", "kubeadm", "how the proxy is installed: kubeadm, drop-in, helm, or kube-proxy for upstream's")
	flag.IntVar(&o.nodes, "nodes", 3, "number of nodes")
	flag.IntVar(&o.procs, "procs", 12, "tests to run at the same time; they wait more than they compute")
	flag.StringVar(&o.focus, "focus", "", "regular expression of the tests to run; empty for all tests of the network that the cluster can run")
	flag.StringVar(&o.skip, "skip", defaultSkip, "regular expression of the tests to leave out")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "directory on a disk for the cluster's files")
	flag.StringVar(&o.report, "report", "bin/conformance", "directory for results: conformance.json, junit.xml and e2e.log")
	flag.StringVar(&o.update, "update", "", "Markdown file whose table of results to update after a run of all tests")
	flag.BoolVar(&o.keep, "keep", false, "keep the cluster until an interrupt, and print how to reach it")
	flag.Parse()
	// A reader of the output that goes away must not leave the cluster behind. Ignoring the signal
	// instead would make containers ignore it, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "conformance: %v\n", err)
		os.Exit(1)
	}
}

var start = time.Now()

// progress prints what begins now.
func progress(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}

func (o options) run(ctx context.Context) (err error) {
	if err := cluster.Installation(o.install).Check(o.mode); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("nodes are made of namespaces: run it as root")
	}
	if err := os.MkdirAll(o.report, 0o755); err != nil {
		return err
	}
	dir, err := cluster.MakeDir(o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tools, images, err := build(ctx, dir)
	if err != nil {
		return err
	}
	c, err := cluster.Up(ctx, cluster.Config{Nodes: o.nodes, Dir: dir, Images: images, Log: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := o.installAll(ctx, c); err != nil {
		return err
	}
	return o.test(ctx, c, tools)
}

// test runs the tests and reports what came of them.
func (o options) test(ctx context.Context, c *cluster.Cluster, tools string) error {
	version, err := c.Client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	progress("running tests of Kubernetes %s; all of them take about 10 minutes on two idle cores", version.GitVersion)
	results, err := o.runTests(ctx, c, tools)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the tests were interrupted: %w", ctx.Err())
	}
	unexpected := results.judge(o.install + " " + o.mode)
	results.print(os.Stdout)
	if o.keep {
		config, err := c.AdminConfig()
		if err != nil {
			return err
		}
		fmt.Printf("the cluster stays until an interrupt; to reach it:\n  ip netns exec %s %s --kubeconfig=%s get pods -A\n",
			c.Lab.Fabric.Name, filepath.Join(tools, "kubectl"), config)
		<-ctx.Done()
	}
	if o.update != "" && o.focus == "" && o.skip == defaultSkip {
		if err := updateTable(o.update, results.row(o.install, o.mode, version.GitVersion)); err != nil {
			return err
		}
	}
	if unexpected > 0 {
		return fmt.Errorf("%d tests failed that are not known to; %s has their logs", unexpected, filepath.Join(o.report, "e2e.log"))
	}
	return nil
}

// build builds what the cluster and the tests run, and returns the directory of programs and the
// image archives.
func build(ctx context.Context, scratch string) (tools string, images []string, err error) {
	progress("building programs and images; the first time this takes 5 to 40 minutes")
	if tools, err = cluster.Tools(ctx, "ginkgo", "e2e.test"); err != nil {
		return "", nil, err
	}
	if images, err = cluster.Images(ctx); err != nil {
		return "", nil, err
	}
	fairlead, err := cluster.FairleadArchive(ctx, scratch)
	return tools, append(images, fairlead), err
}

// installAll installs the proxy and CoreDNS and waits until they are ready.
func (o options) installAll(ctx context.Context, c *cluster.Cluster) error {
	progress("installing the proxy (%s, mode %s) and CoreDNS", o.install, o.mode)
	if err := c.InstallProxy(ctx, cluster.Installation(o.install), o.mode); err != nil {
		return err
	}
	return c.InstallDNS(ctx)
}
