package ipvs

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// Render prints all objects of a table for one family as input of tools, in the order in which they
// are added: sets for ipset restore, rules for iptables-restore --noflush, virtual servers for
// ipvsadm --restore, addresses, routes and rules for ip -batch. The same table gives the same
// bytes.
func Render(w io.Writer, f fwd.Family, o RenderOptions, t *fwd.Table) error {
	return writeText(w, f, &o, objectsOf(f, o, t))
}

func writeText(w io.Writer, f fwd.Family, o *RenderOptions, objects map[Key]Value) error {
	by := make(map[Kind][]Key)
	for _, k := range slices.SortedFunc(maps.Keys(objects), Key.compare) {
		by[k.Kind] = append(by[k.Kind], k)
	}
	p := &printer{bufio.NewWriter(w), f, o.Instance, names(o.Instance), objects}
	p.sets(by[KindSet], by[KindEntry])
	p.rules(by[KindChain])
	p.servers(by[KindServer])
	p.addresses(o.VIPs, by[KindDivert], by[KindVIP])
	return p.Flush()
}

type printer struct {
	*bufio.Writer
	family   fwd.Family
	instance instance.ID
	names    xtables.Exchange
	objects  map[Key]Value
}

func (p *printer) line(format string, args ...any) {
	// xtables.Exchange recognises declared chains by the preceding line break.
	text := p.names.Text("\n" + fmt.Sprintf(format, args...))
	fmt.Fprintln(p, text[1:]) // an error shows in Flush
}

func (p *printer) sets(sets, entries []Key) {
	p.line("# ipset restore")
	inet := "inet"
	if p.family == fwd.IPv6 {
		inet = "inet6"
	}
	for _, k := range sets {
		p.line("create %s %s family %s", k.Name, p.objects[k].SetType, inet)
	}
	for _, k := range entries {
		p.line("add %s %s", k.Name, entry(k))
	}
}

func (p *printer) rules(chains []Key) {
	tool := "iptables-restore"
	if p.family == fwd.IPv6 {
		tool = "ip6tables-restore"
	}
	p.line("# %s --noflush", tool)
	for len(chains) > 0 {
		table := chains[0].Table
		n := len(chains)
		if i := slices.IndexFunc(chains, func(k Key) bool { return k.Table != table }); i >= 0 {
			n = i
		}
		p.line("*%s", table)
		for _, k := range chains[:n] {
			if strings.HasPrefix(k.Name, chainPrefix) {
				p.line(":%s - [0:0]", k.Name)
			}
		}
		for _, k := range chains[:n] {
			command := "-A"
			if !strings.HasPrefix(k.Name, chainPrefix) {
				command = "-I"
			}
			for rule := range strings.SplitSeq(p.objects[k].Rules, "\n") {
				p.line("%s %s %s", command, k.Name, rule)
			}
		}
		p.line("COMMIT")
		chains = chains[n:]
	}
}

func (p *printer) servers(servers []Key) {
	p.line("# ipvsadm --restore")
	for _, k := range servers {
		s, v := p.objects[k].Server, virtualServer(k)
		p.line("%s", hostipvs.FormatServer(v, s.Settings))
		for _, e := range s.Endpoints {
			p.line("%s", hostipvs.FormatReal(v, hostipvs.RealServer{Addr: e.Addr, Weight: e.Weight}))
		}
	}
}

func (p *printer) addresses(mode VIPMode, divert, vips []Key) {
	p.line("# ip -batch -")
	v6 := ""
	if p.family == fwd.IPv6 {
		v6 = "-6 "
	}
	if mode != VIPMark {
		p.line("link add %s type dummy", p.instance.Device())
	}
	for _, k := range divert {
		m := p.objects[k].Mark
		p.line("%srule add fwmark 0x%x/0x%x lookup %d priority %d", v6, m, m, divertTableOf(p.instance), divertPriority)
		p.line("%sroute add local default dev lo table %d", v6, divertTableOf(p.instance))
	}
	for _, k := range vips {
		if mode == VIPAddress {
			p.line("address add %s dev %s scope link", k.Prefix, p.instance.Device())
			continue
		}
		src := ""
		if a := p.objects[k].Source; a != (netip.Addr{}) {
			src = " src " + a.String()
		}
		p.line("%sroute add local %s dev %s table local%s", v6, k.Prefix, routeDevice, src)
	}
}
