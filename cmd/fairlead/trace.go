package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

const traceUsage = `fairlead trace --objects FILE [flags] SOURCE DESTINATION:PORT/PROTOCOL

Says what the node does with the first packet of a connection, and why. The source is an IP address, the destination
something like 10.96.0.1:80/tcp or [fd00::1]:53/udp. All flags of the daemon are accepted.`

// verdict is the JSON form of an outcome; its keys are an interface for scripts.
type verdict struct {
	Verdict string `json:"verdict"`
	// Endpoints may be chosen: "address:port", sorted by address and port; empty but never null.
	Endpoints []string `json:"endpoints"`
	// Masquerade says that the source is rewritten whichever endpoint is chosen.
	Masquerade bool `json:"masquerade"`
	// Service is "namespace/name:port", empty where no Service has the destination.
	Service string `json:"service"`
	Reason  string `json:"reason"`
}

func runTrace(ctx context.Context, args []string, s streams) error {
	var o offline
	fs := pflag.NewFlagSet("fairlead trace", pflag.ContinueOnError)
	o.bind(fs)
	iface := fs.String("in-interface", "", "name of the interface on which the packet arrives")
	output := fs.StringP("output", "o", "text", "text or json")
	if err := parseFlags(fs, args, traceUsage, s); err != nil {
		return err
	}
	if *output != "text" && *output != "json" {
		return fmt.Errorf("--output %q: want text or json", *output)
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
	h := o.table.Header()
	if !h.IsLocal(p.Src) { // what the node itself sends arrives on no interface
		p.InInterface = *iface
	}
	out := o.table.Lookup(p)
	for _, n := range append(o.notes(p, out, h), o.draining(ctx, p)...) {
		fmt.Fprintf(s.err, "note: %s\n", n)
	}
	if *output == "json" {
		return json.NewEncoder(s.out).Encode(verdictOf(p, out))
	}
	return writeTrace(s.out, p, out)
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

// notes says what the user should know to judge the answer.
func (o *offline) notes(p fwd.Packet, out fwd.Outcome, h fwd.Header) []string {
	var notes []string
	if fwd.FamilyOf(p.Src) != fwd.FamilyOf(p.Dst.Addr()) {
		notes = append(notes, "source and destination are of different families, so there can be no such packet")
	}
	byInterface := o.cfg.DetectMode == config.DetectBridgeInterface || o.cfg.DetectMode == config.DetectInterfacePrefix
	if byInterface && p.InInterface == "" && !h.IsLocal(p.Src) {
		notes = append(notes, fmt.Sprintf("--detect-local-mode %s recognises pods by interface: without --in-interface the source does not count as a pod", o.cfg.DetectMode))
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

// draining says which endpoints behind the destination get no new connections but keep those they have, where this machine
// is the node.
func (o *offline) draining(ctx context.Context, p fwd.Packet) (notes []string) {
	if o.cfg.Mode != config.ModeIPVS || !mayAdminister() {
		return nil
	}
	reals, err := ipvs.DrainingAt(ctx, p.Proto, p.Dst)
	if err != nil {
		return []string{fmt.Sprintf("what drains on this machine cannot be read: %v", err)}
	}
	for _, r := range reals {
		notes = append(notes, fmt.Sprintf("on this machine %s drains: %d established and %d other connections stay until they end", r.Addr, r.Active, r.Inactive))
	}
	return notes
}

func verdictOf(p fwd.Packet, out fwd.Outcome) verdict {
	v := verdict{Verdict: out.Verdict.String(), Endpoints: []string{}, Masquerade: alwaysMasqueraded(p, out), Reason: out.Reason.String()}
	for _, ep := range out.Endpoints {
		v.Endpoints = append(v.Endpoints, ep.Addr.String())
	}
	if out.Owner != (fwd.ServicePort{}) {
		v.Service = out.Owner.String()
	}
	return v
}

// alwaysMasqueraded says that the source is rewritten whichever endpoint is chosen, by the route or as hairpin.
func alwaysMasqueraded(p fwd.Packet, out fwd.Outcome) bool {
	for _, ep := range out.Endpoints {
		if !out.MasqueradeTo(p.Src, ep.Addr) {
			return false
		}
	}
	return len(out.Endpoints) > 0
}

// writeTrace prints the text form.
func writeTrace(w io.Writer, p fwd.Packet, out fwd.Outcome) error {
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

// describe says what is special about going to one endpoint.
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
