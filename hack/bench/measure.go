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

// result is what was measured of one proxy in one mode with so many Services. A negative figure was not measured.
type result struct {
	proxy, mode         string
	services, endpoints int
	// skipped says why nothing was measured.
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

// contestant is a proxy in a mode, on a node of its own.
type contestant struct {
	result
	binary   string
	flags    []string
	userland string
	// programs is a directory in which iptables, which kube-proxy runs, is that of the userland.
	programs string
	node     *lab.Node
	// first and last are Services that were made before all others and after them, whose endpoint is a pod of the node.
	first, last string
	// rate is a Service of the node whose connections are accepted and closed.
	rate string
	vips map[string]netip.AddrPort
}

// settle is how long a proxy may go on working after it has been seen to be done, before its memory and CPU are looked at.
const settle = 5 * time.Second

// patience is how long a proxy may take for its first programming.
const patience = 15 * time.Minute

// measureSize measures all contestants with n Services.
func measureSize(ctx context.Context, s settings, n int, dir, ours, peer string) (results []result, err error) {
	var all []*contestant
	for _, mode := range s.modes {
		for _, proxy := range []string{"fairlead", "kube-proxy"} {
			if s.only != "" && s.only != proxy {
				continue
			}
			p := &contestant{result: result{proxy: proxy, mode: mode, services: n, endpoints: s.endpoints, rollSize: min(s.slices, n) * s.endpoints}, binary: ours}
			if proxy == "kube-proxy" {
				p.binary = peer
			}
			if most, bounded := s.most[proxy+" "+mode]; bounded && n > most {
				p.skipped = fmt.Sprintf("left out: measured up to %d Services", most)
			}
			all = append(all, p)
		}
	}
	// One node more has no proxy.
	c, err := newCluster(ctx, dir, len(all)+1, s.endpoints)
	defer func() { err = errors.Join(err, c.close()) }()
	if err != nil {
		return nil, err
	}
	for i, p := range all {
		p.prepare(c.lab.Nodes[i], c.kubeconfig)
		p.programs = filepath.Join(dir, p.userland)
		if err := linkPrograms(p.programs, p.userland); err != nil {
			return nil, err
		}
		if err := p.makeService(ctx, c, &p.first, "a-first", podPort); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	if err := c.fill(ctx, n-2); err != nil {
		return nil, err
	}
	fmt.Printf("%d Services of %d endpoints written in %v\n", n, s.endpoints, time.Since(start).Round(time.Second))
	for _, p := range all {
		if err := errors.Join(p.makeService(ctx, c, &p.last, "z-last", podPort), p.makeService(ctx, c, &p.rate, "z-rate", ratePort)); err != nil {
			return nil, err
		}
	}
	empty := c.lab.Nodes[len(all)]
	// As every pod network has: without a rule the kernel would not even track connections.
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

// userlandOf is the userland of iptables that a mode uses.
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

// makeService makes a Service whose endpoint is the node's first pod.
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

// measure runs the proxy and takes all figures.
func (p *contestant) measure(ctx context.Context, s settings, c *cluster, empty *lab.Node, number int) (err error) {
	if err := daemon.Hint(ctx, p.node, p.userland); err != nil {
		return err
	}
	bin, count, err := wrappers(p.userland)
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	lock := watchLock()
	received, err := p.received(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	d, err := p.start("")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Kill()) }()
	fail := func(err error) error { return fmt.Errorf("%w\n%s", err, tail(d.Log())) }
	first, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, name := range []string{p.last, p.first} {
		if err := p.await(first, name, p.node.Pods[0].Label); err != nil {
			p.lockHeld = lock()
			return fail(err)
		}
	}
	p.cold = time.Since(start)
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	p.lockHeld = lock()
	if now, err := p.received(ctx); err == nil {
		p.apiBytes = now - received
	}
	// The last Service may answer long before all is done.
	if err := p.awaitSynced(ctx); err != nil {
		return fail(err)
	}
	sums, err := p.metric(ctx, "kubeproxy_sync_proxy_rules_duration_seconds_sum")
	if err != nil {
		return fail(err)
	}
	for _, family := range sums {
		p.firstSync = max(p.firstSync, time.Duration(family*float64(time.Second)))
	}
	p.say("cold_start_s", "first_sync_s", "xtables_lock_s", "api_bytes")
	if err := p.changes(ctx, s, c, d); err != nil {
		return fail(err)
	}
	p.say("change_p50_s", "change_p99_s", "change_cpu_s")
	if err := p.rolling(ctx, s, c, d, number); err != nil {
		return fail(err)
	}
	p.say("rolling_s", "rolling_cpu_s")
	if p.peakRSS, p.steadyRSS, err = memory(d.Pid()); err != nil {
		return fail(err)
	}
	if err := p.rates(ctx, s, empty); err != nil {
		return fail(err)
	}
	return p.again(ctx, d, bin, count)
}

// start starts the proxy, with a directory in front of its PATH.
func (p *contestant) start(dir string) (*daemon.Daemon, error) {
	path := p.programs + ":" + os.Getenv("PATH")
	if dir != "" {
		path = dir + ":" + path
	}
	return daemon.Start(p.node, "env", append([]string{"PATH=" + path, p.binary}, p.flags...)...)
}

// await dials a Service from a pod until the server answers.
func (p *contestant) await(ctx context.Context, service, server string) error {
	d := probe.NewDialer(p.node.Pods[2].Host)
	to := probe.Target{Proto: "tcp", Dst: p.vips[service], Timeout: 20 * time.Millisecond}
	for {
		r := d.Dial(ctx, to)
		if r.Verdict == probe.Answered && r.Server == server {
			return nil
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("%s does not get to %s in time: %s", service, server, r)
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
		// kube-proxy gathers changes for a second.
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

// awaitFor is await with a bound.
func (p *contestant) awaitFor(ctx context.Context, service, server string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p.await(ctx, service, server)
}

// rolling changes many EndpointSlices as fast as the API server takes them, and then the endpoint of the last Service.
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

// again restarts the proxy with nothing changed and counts its writes to the kernel.
func (p *contestant) again(ctx context.Context, d *daemon.Daemon, bin string, count func() (int, error)) (err error) {
	// kube-proxy does not catch the signal.
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
	// It reads now what the kernel has, which a first start does not.
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
	case p.mode != "ipvs": // which tells nobody of writes
		p.restartWrites = n
	}
	return nil
}

// awaitSynced asks the proxy's metrics until it says that the rules are right.
func (p *contestant) awaitSynced(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		times, err := p.metric(ctx, "kubeproxy_sync_proxy_rules_last_timestamp_seconds")
		if err == nil && len(times) > 0 && slices.Min(times) > 0 {
			return nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("the proxy does not say that it has synced: %w", err)
		}
	}
}

// metric asks the proxy for the values of all series of a metric.
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

// watchTransactions counts transactions of nf_tables on the node.
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
		text, _ := io.ReadAll(out) // ends when the monitor is told to end
		n.Add(int64(strings.Count(string(text), "# new generation")))
	}()
	return n, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
		_ = cmd.Wait()
	}, sleep(ctx, 200*time.Millisecond)
}

// received is the number of bytes that the node has received from others; while a proxy starts that is the API server.
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

// memory reads the largest and the present resident set of a process, in bytes.
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

// watchLock samples the lock that all programs of the legacy userland share. The function that it returns ends that and says
// how long the lock was held.
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

// wrappers makes a directory with programs in place of those that write iptables, which note each run. count says how
// many there were.
func wrappers(userland string) (dir string, count func() (int, error), err error) {
	if dir, err = os.MkdirTemp("", "fairlead-bench-bin"); err != nil {
		return "", nil, err
	}
	notes := filepath.Join(dir, "notes")
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, name := range []string{family + "-restore", family + "-" + userland + "-restore"} {
			real, err := exec.LookPath(family + "-" + userland + "-restore")
			if err != nil {
				return dir, nil, err
			}
			// A restore of nothing but probes for features of the userland is no write of rules.
			script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *--version*) ;; *) echo run >>%s ;; esac\nexec %s \"$@\"\n", notes, real)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				return dir, nil, err
			}
		}
	}
	return dir, func() (int, error) {
		text, err := os.ReadFile(notes)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		return strings.Count(string(text), "run\n"), err
	}, nil
}

// linkPrograms makes a directory in which iptables is that of a userland.
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

// tail is the end of a log.
func tail(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}
