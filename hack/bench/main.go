package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
)

// settings are the command line's settings.
type settings struct {
	sizes     []int
	endpoints int
	modes     []string
	changes   int
	slices    int
	rounds    int
	out       string
	// most limits, by "proxy mode", the number of Services of a contestant, so that a benchmark
	// ends in time.
	most map[string]int
	// only restricts the benchmark to one proxy.
	only string
}

// allModes are the modes that can be measured; iptables is measured with each userland.
var allModes = []string{"nftables", "iptables-nft", "iptables-legacy", "ipvs"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (settings, error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	sizes := fs.String("services", "1000,5000", "numbers of Services, with one run for each")
	modes := fs.String("modes", "nftables,iptables-nft,iptables-legacy", "modes to measure: "+strings.Join(allModes, ", "))
	most := fs.String("most", "kube-proxy iptables-nft=1000,kube-proxy iptables-legacy=10000,kube-proxy ipvs=1000",
		"maximum number of Services for a proxy in a mode that would take too long")
	s := settings{most: make(map[string]int)}
	fs.IntVar(&s.endpoints, "endpoints", 10, "endpoints of each Service")
	fs.IntVar(&s.changes, "changes", 20, "number of timed changes of one endpoint")
	fs.IntVar(&s.slices, "rolling", 100, "number of EndpointSlices that change in a rolling update")
	fs.IntVar(&s.rounds, "rounds", 15, "rounds of new connections, 0.2 s each")
	fs.StringVar(&s.out, "out", "bin/bench", "directory for results.csv")
	fs.StringVar(&s.only, "only", "", "measure only fairlead, or only kube-proxy")
	if err := fs.Parse(args); err != nil {
		return s, err
	}
	if fs.NArg() > 0 {
		return s, fmt.Errorf("argument %q: want flags only", fs.Arg(0))
	}
	for text := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 2 || n > 60000 {
			return s, fmt.Errorf("-services %s: want numbers from 2 to 60000", text)
		}
		s.sizes = append(s.sizes, n)
	}
	for mode := range strings.SplitSeq(*modes, ",") {
		if !slices.Contains(allModes, mode) {
			return s, fmt.Errorf("-modes %s: want %s", mode, strings.Join(allModes, ", "))
		}
		s.modes = append(s.modes, mode)
	}
	for item := range strings.SplitSeq(*most, ",") {
		if item == "" {
			continue
		}
		name, number, _ := strings.Cut(item, "=")
		n, err := strconv.Atoi(number)
		if err != nil {
			return s, fmt.Errorf("-most %s: want PROXY MODE=NUMBER", item)
		}
		s.most[name] = n
	}
	return s, nil
}

func run(ctx context.Context, args []string) error {
	s, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	dir, err := os.MkdirTemp("", "fairlead-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ours, err := daemon.Build(ctx, dir)
	if err != nil {
		return err
	}
	peer, err := apiserver.Binary("kube-proxy")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return err
	}
	var results []result
	start := time.Now()
	for _, n := range s.sizes {
		r, err := measureSize(ctx, s, n, filepath.Join(dir, strconv.Itoa(n)), ours, peer)
		results = append(results, r...)
		if err != nil {
			return err
		}
		// Keep these results even if a later size fails.
		if err := writeCSV(filepath.Join(s.out, "results.csv"), results); err != nil {
			return err
		}
	}
	fmt.Printf("\nmeasured in %v on %s\n\n", time.Since(start).Round(time.Second), machine())
	printTables(os.Stdout, results)
	fmt.Printf("results in %s\n", filepath.Join(s.out, "results.csv"))
	return nil
}
