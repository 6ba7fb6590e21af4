package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

// result holds the figures of one proxy in one mode with one number of Services. A negative figure
// was not measured.
type result struct {
	proxy, mode         string
	services, endpoints int
	// skipped is the reason why nothing was measured.
	skipped string

	cold                     time.Duration
	firstSync                time.Duration
	change50, change99       time.Duration
	changeCPU                time.Duration
	roll, rollCPU            time.Duration
	rollSize                 int
	peakRSS, steadyRSS       int64 // bytes
	lockHeld                 time.Duration
	apiBytes                 int64
	restart                  time.Duration
	restartWrites            int
	direct, through          float64 // ratios to a node without a proxy
	directLatency, thLatency time.Duration
}

// contestant is a proxy in a mode, on its own node.
type contestant struct {
	result
	binary   string
	flags    []string
	userland string
	// programs is a directory with the userland's iptables, for kube-proxy.
	programs string
	node     *lab.Node
	// first and last are the Services that were created before and after all others. Their endpoint
	// is a pod of the node.
	first, last string
	// rate is a Service whose endpoint, a pod of the node, accepts and closes connections.
	rate string
	vips map[string]netip.AddrPort
}

// settle is how long to wait between the end of an observed change and reading the proxy's memory
// and CPU.
const settle = 5 * time.Second

// firstSyncTimeout is how long a proxy may take for its first sync.
const firstSyncTimeout = 15 * time.Minute

// measureSize measures all contestants with n Services.
func measureSize(ctx context.Context, s settings, n int, dir, fairlead, kubeProxy string) (results []result, err error) {
	all := contestants(s, n, fairlead, kubeProxy)
	// The additional node has no proxy.
	c, err := newCluster(ctx, dir, len(all)+1, s.endpoints)
	defer func() { err = errors.Join(err, c.close()) }()
	if err != nil {
		return nil, err
	}
	if err := fillCluster(ctx, s, n, dir, c, all); err != nil {
		return nil, err
	}
	empty := c.lab.Nodes[len(all)]
	// Every pod network has some rule; without one the kernel would not even track connections.
	if _, err := empty.Run(ctx, "iptables-"+userlandOf(s.modes[0]), "-w", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "MASQUERADE"); err != nil {
		return nil, err
	}
	for i, p := range all {
		if p.skipped == "" {
			fmt.Printf("  %s, %s\n", p.proxy, p.mode)
			if err := p.measure(ctx, s, c, empty, i+1); err != nil {
				p.skipped = err.Error()
				fmt.Printf("    %v\n", err)
			}
		}
		results = append(results, p.result)
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
	}
	return results, nil
}

// contestants returns the proxies to measure with n Services in each mode.
func contestants(s settings, n int, fairlead, kubeProxy string) []*contestant {
	var all []*contestant
	for _, mode := range s.modes {
		for _, proxy := range []string{"fairlead", "kube-proxy"} {
			if s.only != "" && s.only != proxy {
				continue
			}
			p := &contestant{result: result{proxy: proxy, mode: mode, services: n, endpoints: s.endpoints, rollSize: min(s.slices, n) * s.endpoints}, binary: fairlead}
			if proxy == "kube-proxy" {
				p.binary = kubeProxy
			}
			if most, bounded := s.most[proxy+" "+mode]; bounded && n > most {
				p.skipped = fmt.Sprintf("skipped: measured up to %d Services", most)
			}
			all = append(all, p)
		}
	}
	return all
}

// fillCluster creates n Services, among them those of each contestant, and prepares the nodes.
func fillCluster(ctx context.Context, s settings, n int, dir string, c *cluster, all []*contestant) error {
	for i, p := range all {
		p.prepare(c.lab.Nodes[i], c.kubeconfig)
		p.programs = filepath.Join(dir, p.userland)
		if err := linkPrograms(p.programs, p.userland); err != nil {
			return err
		}
		if err := p.makeService(ctx, c, &p.first, "a-first", podPort); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := c.fill(ctx, n-2); err != nil {
		return err
	}
	fmt.Printf("%d Services of %d endpoints written in %v\n", n, s.endpoints, time.Since(start).Round(time.Second))
	for _, p := range all {
		if err := errors.Join(p.makeService(ctx, c, &p.last, "z-last", podPort), p.makeService(ctx, c, &p.rate, "z-rate", ratePort)); err != nil {
			return err
		}
	}
	return nil
}

// userlandOf returns the iptables userland that a mode uses.
func userlandOf(mode string) string {
	if mode == "iptables-legacy" || mode == "ipvs" {
		return "legacy"
	}
	return "nft"
}

func (p *contestant) prepare(n *lab.Node, kubeconfig string) {
	p.node, p.userland, p.vips = n, userlandOf(p.mode), make(map[string]netip.AddrPort)
	p.cold, p.firstSync, p.lockHeld, p.restart, p.restartWrites = -1, -1, -1, -1, -1
	mode, _, _ := strings.Cut(p.mode, "-")
	p.flags = []string{
		"--proxy-mode=" + mode, "--kubeconfig=" + kubeconfig, "--hostname-override=" + n.Label,
		"--cluster-cidr=" + lab.PodCIDRs[0].String() + "," + lab.PodCIDRs[1].String(), "--nodeport-addresses=primary",
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0", "--oom-score-adj=0",
	}
}

// makeService creates a Service whose endpoint is the node's first pod.
func (p *contestant) makeService(ctx context.Context, c *cluster, name *string, prefix string, port int32) error {
	*name = prefix + "-" + p.node.Label
	vip, err := c.service(ctx, *name)
	if err != nil {
		return err
	}
	p.vips[*name] = vip
	_, err = c.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, sliceAt(port, *name, p.node.Pods[0].Addrs[0]), metav1.CreateOptions{})
	return err
}

// measure runs the proxy and measures everything.
func (p *contestant) measure(ctx context.Context, s settings, c *cluster, empty *lab.Node, number int) (err error) {
	if err := daemon.Hint(ctx, p.node, p.userland); err != nil {
		return err
	}
	bin, count, err := wrappers(p.userland)
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	d, err := p.coldStart(ctx)
	if d == nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Kill()) }()
	if err == nil {
		err = p.running(ctx, s, c, d, empty, number)
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(d.Log()))
	}
	return p.restarted(ctx, d, bin, count)
}

// coldStart starts the proxy and measures until it has programmed all Services. The daemon is nil
// if it did not start.
func (p *contestant) coldStart(ctx context.Context) (*daemon.Daemon, error) {
	lock := watchLock()
	received, err := p.received(ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	d, err := p.start("")
	if err != nil {
		return nil, err
	}
	first, cancel := context.WithTimeout(ctx, firstSyncTimeout)
	defer cancel()
	for _, name := range []string{p.last, p.first} {
		if err := p.await(first, name, p.node.Pods[0].Label); err != nil {
			p.lockHeld = lock()
			return d, err
		}
	}
	p.cold = time.Since(start)
	if err := sleep(ctx, settle); err != nil {
		return d, err
	}
	p.lockHeld = lock()
	if now, err := p.received(ctx); err == nil {
		p.apiBytes = now - received
	}
	// The last Service may answer long before everything is programmed.
	if err := p.awaitSynced(ctx); err != nil {
		return d, err
	}
	sums, err := p.metric(ctx, "kubeproxy_sync_proxy_rules_duration_seconds_sum")
	if err != nil {
		return d, err
	}
	for _, family := range sums {
		p.firstSync = max(p.firstSync, time.Duration(family*float64(time.Second)))
	}
	p.print("cold_start_s", "first_sync_s", "xtables_lock_s", "api_bytes")
	return d, nil
}

// running measures changes, memory and connections of the running proxy.
func (p *contestant) running(ctx context.Context, s settings, c *cluster, d *daemon.Daemon, empty *lab.Node, number int) (err error) {
	if err := p.changes(ctx, s, c, d); err != nil {
		return err
	}
	p.print("change_p50_s", "change_p99_s", "change_cpu_s")
	if err := p.rolling(ctx, s, c, d, number); err != nil {
		return err
	}
	p.print("rolling_s", "rolling_cpu_s")
	if p.peakRSS, p.steadyRSS, err = memory(d.Pid()); err != nil {
		return err
	}
	return p.rates(ctx, s, empty)
}

// start starts the proxy with a directory, if not empty, at the front of its PATH.
func (p *contestant) start(dir string) (*daemon.Daemon, error) {
	path := p.programs + ":" + os.Getenv("PATH")
	if dir != "" {
		path = dir + ":" + path
	}
	return daemon.Start(p.node, "env", append([]string{"PATH=" + path, p.binary}, p.flags...)...)
}

// await connects to a Service from a pod until the server answers.
func (p *contestant) await(ctx context.Context, service, server string) error {
	d := probe.NewDialer(p.node.Pods[2].Host)
	to := probe.Target{Proto: "tcp", Dst: p.vips[service], Timeout: 20 * time.Millisecond}
	for {
		r := d.Dial(ctx, to)
		if r.Verdict == probe.Answered && r.Server == server {
			return nil
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("%s does not reach %s in time: %s", service, server, r)
		}
	}
}

// changes moves the endpoint of the last Service between two pods.
func (p *contestant) changes(ctx context.Context, s settings, c *cluster, d *daemon.Daemon) error {
	before, err := d.CPU()
	if err != nil {
		return err
	}
	var took []time.Duration
	for i := range s.changes {
		pod := p.node.Pods[(i+1)%2]
		if err := c.point(ctx, p.last, pod.Addrs[0]); err != nil {
			return err
		}
		written := time.Now()
		if err := p.awaitFor(ctx, p.last, pod.Label); err != nil {
			return err
		}
		took = append(took, time.Since(written))
		// kube-proxy batches changes for a second.
		if err := sleep(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	after, err := d.CPU()
	if err != nil {
		return err
	}
	p.changeCPU = (after - before) / time.Duration(len(took))
	slices.Sort(took)
	p.change50, p.change99 = took[len(took)/2], took[(len(took)*99)/100]
	return nil
}

// awaitFor is await with a timeout.
func (p *contestant) awaitFor(ctx context.Context, service, server string) error {
	ctx, cancel := context.WithTimeout(ctx, firstSyncTimeout)
	defer cancel()
	return p.await(ctx, service, server)
}

// rolling changes many EndpointSlices as fast as the API server accepts them, and then the endpoint
// of the last Service.
func (p *contestant) rolling(ctx context.Context, s settings, c *cluster, d *daemon.Daemon, generation int) error {
	before, err := d.CPU()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := c.roll(ctx, min(s.slices, p.services-2), generation); err != nil {
		return err
	}
	pod := p.node.Pods[(s.changes+1)%2]
	if err := c.point(ctx, p.last, pod.Addrs[0]); err != nil {
		return err
	}
	if err := p.awaitFor(ctx, p.last, pod.Label); err != nil {
		return err
	}
	p.roll = time.Since(start)
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	after, err := d.CPU()
	p.rollCPU = after - before
	return err
}

// restarted restarts the proxy with nothing changed and counts its writes to the kernel.
func (p *contestant) restarted(ctx context.Context, d *daemon.Daemon, bin string, count func() (int, error)) (err error) {
	// kube-proxy does not handle SIGTERM.
	if err := d.Kill(); err != nil {
		return err
	}
	transactions, stop, err := p.watchTransactions(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	again, err := p.start(bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, again.Kill()) }()
	if err := p.awaitSynced(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, tail(again.Log()))
	}
	p.restart = time.Since(start)
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	stop()
	// Unlike the first start, this one reads the kernel's rules.
	peak, _, err := memory(again.Pid())
	if err != nil {
		return err
	}
	p.peakRSS = max(p.peakRSS, peak)
	switch n, err := count(); {
	case err != nil:
		return err
	case p.mode == "nftables":
		p.restartWrites = int(transactions.Load())
	case p.mode != "ipvs": // whose writes cannot be observed
		p.restartWrites = n
	}
	return nil
}

// awaitSynced polls the proxy's metrics until it has synced.
func (p *contestant) awaitSynced(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstSyncTimeout)
	defer cancel()
	for {
		times, err := p.metric(ctx, "kubeproxy_sync_proxy_rules_last_timestamp_seconds")
		if err == nil && len(times) > 0 && slices.Min(times) > 0 {
			return nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("the proxy does not report a sync: %w", err)
		}
	}
}

// metric returns the values of all series of one of the proxy's metrics.
func (p *contestant) metric(ctx context.Context, name string) (values []float64, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = p.node.Do(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, name); found && strings.IndexAny(rest, "{ ") == 0 {
			line = strings.TrimSpace(line)
			value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				return nil, fmt.Errorf("metrics: line %q: %w", line, err)
			}
			values = append(values, value)
		}
	}
	return values, nil
}

// watchTransactions counts nf_tables transactions on the node. The returned function stops it.
func (p *contestant) watchTransactions(ctx context.Context) (*atomic.Int64, func(), error) {
	n := new(atomic.Int64)
	if p.mode != "nftables" {
		return n, func() {}, nil
	}
	cmd := p.node.Command(ctx, "nft", "monitor")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, _ := io.ReadAll(out) // ends with the monitor
		n.Add(int64(strings.Count(string(text), "# new generation")))
	}()
	return n, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
		_ = cmd.Wait()
	}, sleep(ctx, 200*time.Millisecond)
}

// received returns the number of bytes that the node has received; while a proxy starts they come
// from the API server.
func (p *contestant) received(ctx context.Context) (int64, error) {
	text, err := p.node.Run(ctx, "cat", "/proc/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if fields := strings.Fields(rest); ok && strings.HasPrefix(name, "eth") && len(fields) > 0 {
			return strconv.ParseInt(fields[0], 10, 64)
		}
	}
	return 0, errors.New("the node has no eth interface")
}

// memory returns the peak and the current resident set size of a process, in bytes.
func memory(pid int) (peak, now int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "VmHWM:":
			peak = kib << 10
		case "VmRSS:":
			now = kib << 10
		}
	}
	return peak, now, nil
}

// watchLock samples the xtables lock of the legacy userland. The returned function stops it and
// returns how long the lock was held.
func watchLock() func() time.Duration {
	const every = time.Millisecond
	stop, held := make(chan struct{}), make(chan time.Duration)
	go func() {
		var sum time.Duration
		f, err := os.OpenFile("/run/xtables.lock", os.O_RDONLY|os.O_CREATE, 0o600)
		if err != nil {
			<-stop
			held <- -1
			return
		}
		defer f.Close()
		last := time.Now()
		for {
			select {
			case <-stop:
				held <- sum
				return
			case <-time.After(every):
			}
			now := time.Now()
			if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
				sum += now.Sub(last)
			} else {
				_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
			}
			last = now
		}
	}()
	return func() time.Duration { close(stop); return <-held }
}

// wrappers makes a directory with wrappers of the programs that write iptables. count returns how
// often they were run.
func wrappers(userland string) (dir string, count func() (int, error), err error) {
	if dir, err = os.MkdirTemp("", "fairlead-bench-bin"); err != nil {
		return "", nil, err
	}
	runs := filepath.Join(dir, "runs")
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, name := range []string{family + "-restore", family + "-" + userland + "-restore"} {
			real, err := exec.LookPath(family + "-" + userland + "-restore")
			if err != nil {
				return dir, nil, err
			}
			// Asking for the version is not a write of rules.
			script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *--version*) ;; *) echo run >>%s ;; esac\nexec %s \"$@\"\n", runs, real)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				return dir, nil, err
			}
		}
	}
	return dir, func() (int, error) {
		text, err := os.ReadFile(runs)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		return strings.Count(string(text), "run\n"), err
	}, nil
}

// linkPrograms makes a directory with the iptables programs of a userland.
func linkPrograms(dir, userland string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			program, err := exec.LookPath(family + "-" + userland + suffix)
			if err != nil {
				return err
			}
			if err := os.Symlink(program, filepath.Join(dir, family+suffix)); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tail returns the last lines of a log.
func tail(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}
