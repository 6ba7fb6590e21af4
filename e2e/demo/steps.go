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

// step is one numbered step of the demo. run returns one line for each result, or an error if a
// result is not as expected.
type step struct {
	title string
	run   func(*demo, context.Context) ([]string, error)
	// mode restricts the step to one mode; empty means every mode.
	mode string
}

var steps = []step{
	{title: "Start fairlead on both nodes", run: (*demo).startDaemons},
	{title: "List node1's virtual servers and their endpoints, in the format of \"ipvsadm --save\"", run: (*demo).virtualServers, mode: "ipvs"},
	{title: "A pod connects to the cluster IP of shop/web: all four pods answer and see the client's own address", run: (*demo).clusterIP},
	{title: "The external client connects to node port 30080 of node2: all four pods answer and see node2's address, so that replies return through node2", run: (*demo).nodePort},
	{title: "The external client connects to the load-balancer IP of shop/web: the same, through node1", run: (*demo).balancer},
	{title: "shop/web-local has externalTrafficPolicy Local: only the pods on node1 answer, and they see the client's address", run: (*demo).balancerLocal},
	{title: "A pod connects to itself through its own Service: it sees its node's address, so that replies return through the node", run: (*demo).hairpin},
	{title: "shop/closed has no endpoints: the connection is refused at once instead of timing out", run: (*demo).closed},
	{title: "Remove pod p2 of node2 from the Services while a pod keeps connecting", run: (*demo).removeEndpoint},
	{title: "\"fairlead trace\" explains what a node does with a packet, without a cluster", run: (*demo).trace},
	{title: "Stop fairlead on both nodes: its rules stay in force, so new connections still work", run: (*demo).stopDaemons},
}

// clientPod is a pod that serves no Service.
func (d *demo) clientPod() lab.Host { return d.lab.Nodes[0].Pods[2].Host }

func (d *demo) startDaemons(ctx context.Context) ([]string, error) {
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
	return []string{fmt.Sprintf("both nodes had their rules %v after startup", time.Since(start).Round(time.Millisecond))}, nil
}

// virtualServers prints the IPv4 virtual servers of the first node.
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
	for _, s := range content.Servers {
		fmt.Println("     " + ipvs.FormatServer(s.VirtualServer, s.Settings))
		for _, r := range s.Reals {
			fmt.Println("     " + ipvs.FormatReal(s.VirtualServer, r.RealServer))
		}
	}
	if !web {
		return nil, errors.New("there is no virtual server 10.96.0.80:80 with four endpoints")
	}
	return []string{fmt.Sprintf("%d IPv4 virtual servers with %d endpoints", len(content.Servers), reals)}, nil
}

func (d *demo) clusterIP(ctx context.Context) ([]string, error) {
	var lines []string
	for f, to := range []string{"10.96.0.80:80", "[fd00:10:96::80]:80"} {
		results, err := d.dial(ctx, d.clientPod(), to, 100)
		if err != nil {
			return nil, err
		}
		counts, err := share(results, "node1-p1", "node1-p2", "node2-p1", "node2-p2")
		if err != nil {
			return nil, err
		}
		if err := allSaw(results, d.clientPod().Addrs[f]); err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("100 connections to %s: %s; all saw %s", to, counts, d.clientPod().Addrs[f]))
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

// outside connects from the external client and checks which pods answer and which source address
// they see.
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
		return nil, errors.New("none of 60 connections went to the pod itself")
	}
	return []string{fmt.Sprintf("%d of 60 connections of %s went to itself, which saw %s; the others saw %s",
		own, self.Label, d.lab.Nodes[0].Addrs[0], self.Addrs[0])}, nil
}

func (d *demo) closed(ctx context.Context) ([]string, error) {
	r := probe.NewDialer(d.clientPod()).Dial(ctx, probe.Target{Proto: "tcp", Dst: netip.MustParseAddrPort("10.96.0.82:80")})
	if r.Verdict != probe.Refused {
		return nil, fmt.Errorf("the connection is %s, not refused", r)
	}
	return []string{fmt.Sprintf("connection refused after %v", r.Took.Round(10*time.Microsecond))}, nil
}

// removeEndpoint removes a pod from the objects and connects until fifty connections in a row have
// not reached it. It waits first: fairlead leaves a second between two syncs, and the last one was
// at startup.
func (d *demo) removeEndpoint(ctx context.Context) ([]string, error) {
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
	last, attempts, without := time.Duration(0), 0, 0
	for without < 50 {
		results, err := d.dial(ctx, d.clientPod(), "10.96.0.80:80", 1)
		if err != nil {
			return nil, err
		}
		attempts, without = attempts+1, without+1
		if results[0].Server == leaver.Label {
			last, without = time.Since(start), 0
		}
		if time.Since(start) > 20*time.Second {
			return nil, fmt.Errorf("%s still gets connections after 20 s", leaver.Label)
		}
	}
	return []string{
		fmt.Sprintf("the pod got its last connection %v after the objects changed", last.Round(100*time.Microsecond)),
		fmt.Sprintf("all %d connections in the meantime were answered", attempts),
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
			return nil, fmt.Errorf("endpoint %s is missing in the output", ep)
		}
	}
	return []string{"these are the pods that answered the external client above"}, nil
}

func (d *demo) stopDaemons(ctx context.Context) ([]string, error) {
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

// share counts the answers of each server. Every server in want must have answered, and no other.
func share(results []probe.Result, want ...string) (string, error) {
	counts := map[string]int{}
	for _, r := range results {
		counts[r.Server]++
		if !slices.Contains(want, r.Server) {
			return "", fmt.Errorf("%s answered; only %s should", r.Server, strings.Join(want, ", "))
		}
	}
	var parts []string
	for _, w := range want {
		if counts[w] == 0 {
			return "", fmt.Errorf("%s answered none of %d connections", w, len(results))
		}
		parts = append(parts, fmt.Sprintf("%s %d", w, counts[w]))
	}
	return strings.Join(parts, ", "), nil
}

// allSaw checks the source address that the pods saw.
func allSaw(results []probe.Result, want netip.Addr) error {
	for _, r := range results {
		if r.Saw.Addr() != want {
			return fmt.Errorf("%s saw the client as %s instead of %s", r.Server, r.Saw.Addr(), want)
		}
	}
	return nil
}
