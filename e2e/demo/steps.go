package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/ipvs"
)

// step does one thing and says what it has found, one line each; an error says what is not as it should be.
type step struct {
	title string
	run   func(*demo, context.Context) ([]string, error)
	// mode is the only one in which there is something to see; empty is all.
	mode string
}

var steps = []step{
	{title: "fairlead starts on both nodes and reads the objects", run: (*demo).begin},
	{title: "What is in node1's kernel now: the virtual servers with their endpoints, as \"ipvsadm --save\" prints them", run: (*demo).virtualServers, mode: "ipvs"},
	{title: "A pod dials the cluster IP of shop/web: all four pods of both nodes get their share, and see who asks", run: (*demo).clusterIP},
	{title: "The client outside dials node2's port 30080: any pod answers, and sees node2, for replies have to come back this way", run: (*demo).nodePort},
	{title: "It dials the load balancer IP of shop/web: the same, through node1", run: (*demo).balancer},
	{title: "shop/web-local has externalTrafficPolicy Local: only node1's own pods answer, and see the client's address", run: (*demo).balancerLocal},
	{title: "A pod reaches itself through its own Service; it then sees its node, or its reply would not find the way back", run: (*demo).hairpin},
	{title: "shop/closed has no endpoints: connections are refused at once instead of hanging", run: (*demo).closed},
	{title: "Pod p2 of node2 leaves the Services while a pod keeps dialling", run: (*demo).endpointLeaves},
	{title: "\"fairlead trace\" says what a node does with a packet, and why; it needs no cluster", run: (*demo).trace},
	{title: "fairlead ends on both nodes: its rules stay, so connections go on", run: (*demo).daemonsEnd},
}

func (d *demo) guest() lab.Host { return d.lab.Nodes[0].Pods[2].Host }

func (d *demo) begin(ctx context.Context) ([]string, error) {
	start := time.Now()
	if err := d.start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, dm := range d.daemons {
		if err := dm.AwaitLog(ctx, "msg=synced"); err != nil {
			return nil, fmt.Errorf("fairlead on node%d: %w", i+1, err)
		}
	}
	return []string{fmt.Sprintf("both have written their rules, %v after they were started", time.Since(start).Round(time.Millisecond))}, nil
}

// virtualServers prints those of IPv4 on the first node.
func (d *demo) virtualServers(ctx context.Context) ([]string, error) {
	var content ipvs.Content
	err := d.lab.Nodes[0].Do(func() error {
		k, err := ipvs.Open(ctx)
		if err != nil {
			return err
		}
		content, err = k.Read(ctx)
		return errors.Join(err, k.Close())
	})
	if err != nil {
		return nil, err
	}
	reals, web := 0, false
	content.Servers = slices.DeleteFunc(content.Servers, func(s ipvs.Server) bool { return !s.VirtualServer.Addr.Addr().Is4() })
	for _, s := range content.Servers {
		reals += len(s.Reals)
		web = web || s.VirtualServer.Addr.String() == "10.96.0.80:80" && len(s.Reals) == 4
	}
	for line := range strings.Lines(ipvs.Format(content)) {
		fmt.Print("     " + line)
	}
	if !web {
		return nil, errors.New("there is none at 10.96.0.80:80 with four endpoints")
	}
	return []string{fmt.Sprintf("%d virtual servers of IPv4, with %d endpoints", len(content.Servers), reals)}, nil
}

func (d *demo) clusterIP(ctx context.Context) ([]string, error) {
	var lines []string
	for f, to := range []string{"10.96.0.80:80", "[fd00:10:96::80]:80"} {
		results, err := d.dial(ctx, d.guest(), to, 100)
		if err != nil {
			return nil, err
		}
		counts, err := share(results, "node1-p1", "node1-p2", "node2-p1", "node2-p2")
		if err != nil {
			return nil, err
		}
		if err := allSaw(results, d.guest().Addrs[f]); err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("100 connections to %s: %s; all saw %s", to, counts, d.guest().Addrs[f]))
	}
	return lines, nil
}

func (d *demo) nodePort(ctx context.Context) ([]string, error) {
	return d.outside(ctx, "192.168.50.12:30080", d.lab.Nodes[1].Addrs[0], "node1-p1", "node1-p2", "node2-p1", "node2-p2")
}

func (d *demo) balancer(ctx context.Context) ([]string, error) {
	return d.outside(ctx, "198.51.100.80:80", d.lab.Nodes[0].Addrs[0], "node1-p1", "node1-p2", "node2-p1", "node2-p2")
}

func (d *demo) balancerLocal(ctx context.Context) ([]string, error) {
	return d.outside(ctx, "198.51.100.81:80", d.lab.Client.Addrs[0], "node1-p1", "node1-p2")
}

// outside has the client dial and checks who answers and which source these have seen.
func (d *demo) outside(ctx context.Context, to string, source netip.Addr, by ...string) ([]string, error) {
	results, err := d.dial(ctx, d.lab.Client, to, 100)
	if err != nil {
		return nil, err
	}
	counts, err := share(results, by...)
	if err != nil {
		return nil, err
	}
	if err := allSaw(results, source); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("100 connections to %s: %s; all saw %s", to, counts, source)}, nil
}

func (d *demo) hairpin(ctx context.Context) ([]string, error) {
	self := d.lab.Nodes[0].Pods[0]
	results, err := d.dial(ctx, self.Host, "10.96.0.80:80", 60)
	if err != nil {
		return nil, err
	}
	own := 0
	for _, r := range results {
		want := self.Addrs[0]
		if r.Server == self.Label {
			own++
			want = d.lab.Nodes[0].Addrs[0]
		}
		if err := allSaw([]probe.Result{r}, want); err != nil {
			return nil, err
		}
	}
	if own == 0 {
		return nil, errors.New("of 60 connections none went to the pod itself")
	}
	return []string{fmt.Sprintf("%d of 60 connections of %s went to itself, which saw %s; the others saw %s",
		own, self.Label, d.lab.Nodes[0].Addrs[0], self.Addrs[0])}, nil
}

func (d *demo) closed(ctx context.Context) ([]string, error) {
	r := probe.NewDialer(d.guest()).Dial(ctx, probe.Target{Proto: "tcp", Dst: netip.MustParseAddrPort("10.96.0.82:80")})
	if r.Verdict != probe.Refused {
		return nil, fmt.Errorf("the connection is %s, not refused", r)
	}
	return []string{fmt.Sprintf("connection refused after %v", r.Took.Round(10*time.Microsecond))}, nil
}

// endpointLeaves takes a pod out of the objects and dials until fifty connections in a row have not met it. It first lets
// a moment pass: fairlead leaves a second between two syncs, and the last one is that of its start.
func (d *demo) endpointLeaves(ctx context.Context) ([]string, error) {
	select {
	case <-time.After(1500 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	leaver := d.lab.Nodes[1].Pods[1]
	var kept []string
	for line := range strings.Lines(objects) {
		if !strings.Contains(line, leaver.Addrs[0].String()+"]") && !strings.Contains(line, leaver.Addrs[1].String()+"\"]") {
			kept = append(kept, line)
		}
	}
	start := time.Now()
	if err := d.write(strings.Join(kept, "")); err != nil {
		return nil, err
	}
	last, dialled, without := time.Duration(0), 0, 0
	for without < 50 {
		results, err := d.dial(ctx, d.guest(), "10.96.0.80:80", 1)
		if err != nil {
			return nil, err
		}
		dialled, without = dialled+1, without+1
		if results[0].Server == leaver.Label {
			last, without = time.Since(start), 0
		}
		if time.Since(start) > 20*time.Second {
			return nil, fmt.Errorf("%s still gets connections after 20 s", leaver.Label)
		}
	}
	return []string{
		fmt.Sprintf("it got its last connection %v after the file with the objects had changed", last.Round(100*time.Microsecond)),
		fmt.Sprintf("all of the %d connections meanwhile were answered", dialled),
	}, nil
}

func (d *demo) trace(ctx context.Context) ([]string, error) {
	args := []string{"trace", "--objects", d.objects, "--node", "node1", "--mode", d.mode,
		"--cluster-cidr", lab.PodCIDRs[0].String() + "," + lab.PodCIDRs[1].String(), "203.0.113.10", "198.51.100.81:80/tcp"}
	out, err := exec.CommandContext(ctx, d.binary, args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("fairlead trace: %w: %s", err, out)
	}
	fmt.Println("   $ fairlead trace --objects objects.yaml --node node1 203.0.113.10 198.51.100.81:80/tcp")
	for line := range strings.Lines(string(out)) {
		fmt.Print("     " + line)
	}
	for _, ep := range []string{"10.244.1.11:8080", "10.244.1.12:8080"} {
		if !strings.Contains(string(out), ep) {
			return nil, fmt.Errorf("the endpoint %s is not in the answer", ep)
		}
	}
	return []string{"these are the endpoints that the client has met"}, nil
}

func (d *demo) daemonsEnd(ctx context.Context) ([]string, error) {
	for i, dm := range d.daemons {
		if err := dm.Stop(); err != nil {
			return nil, fmt.Errorf("fairlead on node%d: %w", i+1, err)
		}
	}
	results, err := d.dial(ctx, d.lab.Client, "198.51.100.80:80", 50)
	if err != nil {
		return nil, err
	}
	counts, err := share(results, "node1-p1", "node1-p2", "node2-p1")
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("50 connections to 198.51.100.80:80: %s", counts)}, nil
}

// share counts who has answered; these and no others must have.
func share(results []probe.Result, want ...string) (string, error) {
	counts := map[string]int{}
	for _, r := range results {
		counts[r.Server]++
		if !slices.Contains(want, r.Server) {
			return "", fmt.Errorf("%s has answered; only %s should", r.Server, strings.Join(want, ", "))
		}
	}
	var parts []string
	for _, w := range want {
		if counts[w] == 0 {
			return "", fmt.Errorf("%s has not answered any of %d connections", w, len(results))
		}
		parts = append(parts, fmt.Sprintf("%s %d", w, counts[w]))
	}
	return strings.Join(parts, ", "), nil
}

// allSaw checks the source address that the pods have seen.
func allSaw(results []probe.Result, want netip.Addr) error {
	for _, r := range results {
		if r.Saw.Addr() != want {
			return fmt.Errorf("%s saw the client as %s instead of %s", r.Server, r.Saw.Addr(), want)
		}
	}
	return nil
}
