package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/localport"
)

const traceUsage = `fairlead trace --objects FILE [flags] SOURCE DESTINATION:PORT/PROTOCOL
  fairlead trace --table FILE [flags] SOURCE DESTINATION:PORT/PROTOCOL
  fairlead trace --objects FILE [flags] --packets FILE

Shows what the node does with the first packet of a connection, and why. The source is an IP address, the destination
something like 10.96.0.1:80/tcp or [fd00::1]:53/udp. A file of packets has one such pair on each line; empty lines and
lines that begin with # are skipped, and each result is a line of JSON. All flags of the daemon are accepted.`

// verdict is the JSON form of an outcome. Its keys are an interface for scripts.
type verdict struct {
	Verdict string `json:"verdict"`
	// Endpoints are those that may be chosen, as "address:port", sorted by address and port; never
	// null.
	Endpoints []string `json:"endpoints"`
	// Masquerade says that the source is rewritten whichever endpoint is chosen.
	Masquerade bool `json:"masquerade"`
	// Service is "namespace/name:port", empty if no Service has the destination.
	Service string `json:"service"`
	Reason  string `json:"reason"`
	// Source and Destination are the packet's, in the form of the arguments.
	Source      string `json:"source"`
	Destination string `json:"destination"`
	// SourceClass is "outside", "pod" or "host".
	SourceClass string `json:"sourceClass"`
	// Frontend is "address:port/protocol", "node4:port/protocol" or "node6:port/protocol", empty if
	// Service is.
	Frontend string `json:"frontend"`
	// AffinitySeconds is how long a client address keeps its endpoint; 0 without session affinity.
	AffinitySeconds uint32 `json:"affinitySeconds"`
	// Candidates are the Endpoints with details; never null.
	Candidates []candidate `json:"candidates"`
	// Notes help to judge the result; never null.
	Notes []string `json:"notes"`
}

// candidate is an endpoint that may be chosen.
type candidate struct {
	Address string `json:"address"`
	// Local says that the endpoint is on this node.
	Local bool `json:"local"`
	// Terminating says that it serves while it shuts down.
	Terminating bool `json:"terminating"`
	// Masquerade says that the source is rewritten if this endpoint is chosen, Hairpin that the
	// reason is that it is the source.
	Masquerade bool `json:"masquerade"`
	Hairpin    bool `json:"hairpin"`
}

func runTrace(ctx context.Context, args []string, s streams) error {
	var o offline
	fs := pflag.NewFlagSet("fairlead trace", pflag.ContinueOnError)
	o.bind(fs)
	o.bindTable(fs)
	iface := fs.String("in-interface", "", "`name` of the interface on which the packet arrives")
	packets := fs.String("packets", "", "`file` with SOURCE DESTINATION on each line, instead of the arguments; - for standard input")
	output := fs.StringP("output", "o", "text", "`format`: text or json; with --packets the default is json")
	if err := parseFlags(fs, args, traceUsage, s); err != nil {
		return err
	}
	if *packets != "" && !fs.Changed("output") {
		*output = "json"
	}
	if *output != "text" && *output != "json" {
		return fmt.Errorf("--output %q: want text or json", *output)
	}
	if *packets != "" {
		return o.traceAll(ctx, *packets, fs.Args(), *iface, *output, s)
	}
	if fs.NArg() != 2 {
		return fmt.Errorf("%d arguments: want a source and a destination, such as 10.0.0.2 10.96.0.1:80/tcp", fs.NArg())
	}
	p, err := parsePacket(fs.Arg(0), fs.Arg(1))
	if err != nil {
		return err
	}
	if err := o.load(s); err != nil {
		return err
	}
	t := o.trace(ctx, p, *iface)
	for _, n := range t.notes {
		fmt.Fprintf(s.err, "note: %s\n", n)
	}
	if *output == "json" {
		return json.NewEncoder(s.out).Encode(verdictOf(t))
	}
	return writeTrace(s.out, t)
}

// traceAll prints the result for each line of a file as soon as it is read.
func (o *offline) traceAll(ctx context.Context, path string, args []string, iface, output string, s streams) error {
	if len(args) > 0 {
		return fmt.Errorf("argument %q: --packets takes no arguments", args[0])
	}
	in, name := io.Reader(os.Stdin), "standard input"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("--packets: %w", err)
		}
		defer f.Close()
		in, name = f, path
	} else if o.cfg.Objects == "-" || o.tablePath == "-" {
		return errors.New("--packets - and --objects - or --table -: only one of them can be standard input")
	}
	if err := o.load(s); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	answers := 0
	for number := 1; lines.Scan(); number++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("%s:%d: %q: want a source and a destination, such as 10.0.0.2 10.96.0.1:80/tcp", name, number, lines.Text())
		}
		p, err := parsePacket(fields[0], fields[1])
		if err != nil {
			return fmt.Errorf("%s:%d: %w", name, number, err)
		}
		t := o.trace(ctx, p, iface)
		if output == "json" {
			err = json.NewEncoder(s.out).Encode(verdictOf(t))
		} else {
			err = writeBlock(s.out, t, answers == 0)
		}
		if err != nil {
			return err
		}
		answers++
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("--packets: read %s: %w", name, err)
	}
	return nil
}

// writeBlock prints one of many results in text form, with its packet and notes.
func writeBlock(w io.Writer, t traced, first bool) error {
	var b strings.Builder
	if !first {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "# %s %s\n", t.packet.Src, destination(t.packet))
	for _, n := range t.notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return writeTrace(w, t)
}

// destination formats a packet's destination like the argument.
func destination(p fwd.Packet) string { return fmt.Sprintf("%s/%s", p.Dst, p.Proto) }

// traced is a packet with its outcome.
type traced struct {
	packet  fwd.Packet
	outcome fwd.Outcome
	notes   []string
}

// trace computes what the node does with a packet; iface is the interface on which it arrives.
func (o *offline) trace(ctx context.Context, p fwd.Packet, iface string) traced {
	h := o.table.Header()
	ownVIP := o.ownsVIP(p.Src)
	p.FromHost = ownVIP || h.IsLocal(p.Src)
	if !p.FromHost { // packets from the node itself arrive on no interface
		p.InInterface = iface
	}
	out, ok := localport.Lookup(&o.table, o.cfg.LocalPorts(), p)
	if !ok {
		out = o.table.Lookup(p)
	}
	if ownVIP && out.Verdict == fwd.VerdictForward {
		out.Masquerade = true // the endpoint could not reply to the address
	}
	return traced{p, out, append(o.notes(p, out), o.draining(ctx, p)...)}
}

// ownsVIP says whether an address is a virtual IP that the mode makes local, so that only this node
// itself can send from it.
func (o *offline) ownsVIP(a netip.Addr) bool {
	h := o.table.Header()
	if m := modeOf(o.cfg); m.localVIPs == nil || !m.localVIPs(o.cfg) || h.IsLocal(a) {
		return false
	}
	isIt := func(v fwd.VIP) bool { return v.Addr == a }
	excluded := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(o.table.VIPs(), isIt) && !slices.ContainsFunc(o.cfg.IPVS.ExcludeCIDRs, excluded)
}

// parsePacket reads the two arguments.
func parsePacket(src, dst string) (fwd.Packet, error) {
	var p fwd.Packet
	a, err := netip.ParseAddr(src)
	if err != nil {
		return p, fmt.Errorf("source %q: want an IP address", src)
	}
	addr, proto, _ := strings.Cut(dst, "/")
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return p, fmt.Errorf("destination %q: want something like 10.96.0.1:80/tcp or [fd00::1]:80/tcp", dst)
	}
	if p.Proto, err = fwd.ParseProto(proto); err != nil {
		return p, fmt.Errorf("destination %q: %w, as in 10.96.0.1:80/tcp", dst, err)
	}
	p.Src = a.Unmap().WithZone("")
	p.Dst = netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	return p, nil
}

// notes are what helps to judge a result.
func (o *offline) notes(p fwd.Packet, out fwd.Outcome) []string {
	var notes []string
	if fwd.FamilyOf(p.Src) != fwd.FamilyOf(p.Dst.Addr()) {
		notes = append(notes, "source and destination have different address families, so no such packet can exist")
	}
	byInterface := o.cfg.DetectMode == config.DetectBridgeInterface || o.cfg.DetectMode == config.DetectInterfacePrefix
	if byInterface && p.InInterface == "" && !p.FromHost {
		notes = append(notes, fmt.Sprintf("--detect-local-mode %s recognizes pods by interface: without --in-interface the source does not count as a pod", o.cfg.DetectMode))
	}
	for _, c := range o.table.Conflicts() {
		if c.Key == out.Key {
			notes = append(notes, fmt.Sprintf("Service %s claims %s too, but %s has it", c.Loser, c.Key, c.Winner))
		}
	}
	for _, pr := range o.problems[out.Owner.Service] {
		notes = append(notes, fmt.Sprintf("Service %s: %s: %s", out.Owner.Service, pr.Field, pr.Message))
	}
	return notes
}

// draining describes the endpoints behind the destination that get no new connections but keep the
// old ones, if this machine is the node.
func (o *offline) draining(ctx context.Context, p fwd.Packet) []string {
	m := modeOf(o.cfg)
	if m.draining == nil || !mayAdminister() {
		return nil
	}
	notes, err := m.draining(ctx, p)
	if err != nil {
		return []string{fmt.Sprintf("cannot read what drains on this machine: %v", err)}
	}
	return notes
}

func verdictOf(t traced) verdict {
	p, out := t.packet, t.outcome
	v := verdict{
		Verdict: out.Verdict.String(), Endpoints: []string{}, Masquerade: alwaysMasqueraded(p, out), Reason: out.Reason.String(),
		Source: p.Src.String(), Destination: destination(p), SourceClass: out.Class.String(), AffinitySeconds: out.AffinitySec,
		Candidates: []candidate{}, Notes: append([]string{}, t.notes...),
	}
	for _, ep := range out.Endpoints {
		v.Endpoints = append(v.Endpoints, ep.Addr.String())
		v.Candidates = append(v.Candidates, candidate{
			Address: ep.Addr.String(), Local: ep.Local, Terminating: ep.Terminating,
			Masquerade: out.MasqueradeTo(p.Src, ep.Addr), Hairpin: !out.Masquerade && out.MasqueradeTo(p.Src, ep.Addr),
		})
	}
	if out.Owner != (fwd.ServicePort{}) {
		v.Service, v.Frontend = out.Owner.String(), out.Key.String()
	}
	return v
}

// alwaysMasqueraded says that the source is rewritten whichever endpoint is chosen, because of the
// route or as hairpin.
func alwaysMasqueraded(p fwd.Packet, out fwd.Outcome) bool {
	for _, ep := range out.Endpoints {
		if !out.MasqueradeTo(p.Src, ep.Addr) {
			return false
		}
	}
	return len(out.Endpoints) > 0
}

// writeTrace prints the text form.
func writeTrace(w io.Writer, t traced) error {
	p, out := t.packet, t.outcome
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s", name+":")
		fmt.Fprintf(&b, format+"\n", args...)
	}
	line("verdict", "%s", out.Verdict)
	line("reason", "%s", out.Reason)
	line("source", "%s, which counts as %s", p.Src, out.Class)
	if out.Owner != (fwd.ServicePort{}) {
		line("service", "%s", out.Owner)
		line("frontend", "%s", out.Key)
	}
	if out.Verdict == fwd.VerdictForward {
		line("masquerade", "%s", yesNo(alwaysMasqueraded(p, out)))
		if out.AffinitySec > 0 {
			line("affinity", "the client address keeps its endpoint for %ds", out.AffinitySec)
		} else {
			line("affinity", "none")
		}
		line("endpoints", "%d", len(out.Endpoints))
		for _, ep := range out.Endpoints {
			fmt.Fprintf(&b, "  %s  %s\n", ep.Addr, describe(p, out, ep))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// describe returns what is special about one endpoint.
func describe(p fwd.Packet, out fwd.Outcome, ep fwd.Endpoint) string {
	words := []string{"on another node"}
	if ep.Local {
		words[0] = "on this node"
	}
	if ep.Terminating {
		words = append(words, "terminating")
	}
	switch {
	case out.Masquerade:
		words = append(words, "masqueraded")
	case out.MasqueradeTo(p.Src, ep.Addr):
		words = append(words, "masqueraded as hairpin")
	}
	return strings.Join(words, ", ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
