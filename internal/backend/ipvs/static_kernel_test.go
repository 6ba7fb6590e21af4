package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// everyRule calls f with programs that together have every kind of rule.
func everyRule(f func(fam fwd.Family, name string, o RenderOptions, objects map[Key]Value)) {
	for i, fam := range fwd.Families {
		cluster, node, cidr := "10.96.0.4", "192.168.0.2", "10.96.0.0/16"
		detectors := []fwd.Detector{{}, {Prefix: netip.MustParsePrefix("10.244.0.0/16")}, {Bridge: "cbr0"}, {InterfacePrefix: "veth"}, {InterfacePrefix: "cali23456789012"}}
		if fam == fwd.IPv6 {
			cluster, node, cidr = "fd00:96::4", "fd00:1::2", "fd00:96::/112"
			detectors[1].Prefix = netip.MustParsePrefix("fd00:244::/32")
		}
		for n, d := range detectors {
			h := fwd.Header{MasqueradeBit: uint8(11 + n), LocalAddrs: []netip.Addr{netip.MustParseAddr(node)}}
			h.Detector[i], h.ServiceCIDRs[i], h.NodePorts[i].All = d, []netip.Prefix{netip.MustParsePrefix(cidr)}, true
			if n%2 == 1 {
				h.MasqueradeSource[i] = h.LocalAddrs[0]
			}
			t := &fwd.Table{}
			t.SetHeader(h)
			t.Put(localPolicies(fam, netip.MustParseAddr(cluster)))
			for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
				o := RenderOptions{VIPs: mode, HairpinBPF: n%2 == 0, RandomFully: n%2 == 0}
				f(fam, fmt.Sprintf("%s, %s, detector %d", fam, mode, n), o, objectsOf(fam, o, t))
			}
		}
	}
}

// localPolicies is a Service with a port of each protocol, whose node ports redirect pods and the
// node.
func localPolicies(fam fwd.Family, clusterIP netip.Addr) *fwd.Fragment {
	frag := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: "local"}}
	for i, proto := range []fwd.Proto{fwd.TCP, fwd.UDP, fwd.SCTP} {
		port := fwd.ServicePort{Service: frag.Owner, Port: proto.String(), Proto: proto}
		local := fwd.Route{Action: fwd.Forward, Scope: fwd.Local}
		all := fwd.Route{Action: fwd.Forward, Scope: fwd.Cluster, Masquerade: true}
		frag.Frontends = append(frag.Frontends,
			fwd.Frontend{Key: fwd.Key{Family: fam, Proto: proto, Port: uint16(30000 + i)}, Kind: fwd.NodePort, Owner: port,
				Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: local, fwd.Pod: all, fwd.Host: all}},
			fwd.Frontend{Key: fwd.Key{Family: fam, Addr: clusterIP, Proto: proto, Port: 80}, Owner: port, Routes: [fwd.NumClasses]fwd.Route{all, all, all}})
		for _, s := range []fwd.Scope{fwd.Cluster, fwd.Local} {
			frag.Pools = append(frag.Pools, fwd.Pool{Key: fwd.PoolKey{Port: port, Family: fam, Scope: s},
				Endpoints: []fwd.Endpoint{{Addr: netip.AddrPortFrom(clusterIP.Next(), 8080), Weight: 1, Local: true}}})
		}
	}
	slices.SortFunc(frag.Frontends, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(frag.Pools, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
	return frag
}

// The rules equal what is read back, from the real iptables and the simulated one.
func TestKernelRulesAreAsSaved(t *testing.T) {
	hosttest.Need(t, hosttest.IPVS)
	asSaved(t, []xtables.Flavour{xtables.Legacy}, func(string) bool { return true })
}

// The same with the other userland.
func TestKernelRulesAreAsSavedByNFT(t *testing.T) {
	hosttest.Need(t, hosttest.IPVS, hosttest.NFTables)
	asSaved(t, []xtables.Flavour{xtables.NFT}, func(string) bool { return true })
}

// The same with both userlands on a kernel without IPVS, except for the rules that need it.
func TestKernelRulesWithoutIPVS(t *testing.T) {
	hosttest.Need(t, hosttest.NFTables)
	asSaved(t, []xtables.Flavour{xtables.Legacy, xtables.NFT}, func(rule string) bool { return !strings.Contains(rule, "-m ipvs") })
}

func asSaved(t *testing.T, flavours []xtables.Flavour, possible func(rule string) bool) {
	everyRule(func(fam fwd.Family, name string, _ RenderOptions, objects map[Key]Value) {
		for _, fl := range flavours {
			// The namespace ends with the goroutine, so each program has its own.
			done := make(chan struct{})
			go func() {
				defer close(done)
				hosttest.Netns(t, "iptables-legacy-restore")
				checkSaved(t, fam, fmt.Sprintf("%s, %s", name, fl), fl, objects, possible)
			}()
			<-done
		}
	})
}

func checkSaved(t *testing.T, fam fwd.Family, name string, fl xtables.Flavour, objects map[Key]Value, possible func(string) bool) {
	ctx := context.Background()
	sets, err := ipset.Open()
	if err != nil {
		t.Error(err)
		return
	}
	defer sets.Close()
	want := make(map[string]map[string][]string)
	for k, v := range objects {
		switch k.Kind {
		case KindSet:
			s := ipset.Set{Name: k.Name, Type: v.SetType, IPv6: fam == fwd.IPv6, MaxElem: ipset.DefaultMaxElem}
			if err := sets.Create(ctx, s); err != nil {
				t.Error(err)
			}
		case KindChain:
			if want[k.Table] == nil {
				want[k.Table] = make(map[string][]string)
			}
			want[k.Table][k.Name] = slices.DeleteFunc(strings.Split(v.Rules, "\n"), func(r string) bool { return !possible(r) })
		}
	}
	var text strings.Builder
	for table, chains := range want {
		fmt.Fprintf(&text, "*%s\n", table)
		for c := range chains {
			if strings.HasPrefix(c, chainPrefix) {
				fmt.Fprintf(&text, ":%s - [0:0]\n", c)
			}
		}
		for c, rules := range chains {
			for _, r := range rules {
				fmt.Fprintf(&text, "-A %s %s\n", c, r)
			}
		}
		text.WriteString("COMMIT\n")
	}
	tables, err := xtables.New(fl, fam == fwd.IPv6)
	if err != nil {
		t.Error(err)
		return
	}
	if err := tables.Restore(ctx, []byte(text.String())); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	sim, err := rulesim.Parse(fam, text.String())
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for table, chains := range want {
		saved, err := tables.Read(ctx, table)
		if err != nil {
			t.Error(err)
			return
		}
		for c, rules := range chains {
			if diff := cmp.Diff(rules, slices.Clip(saved[c].Rules)); diff != "" && len(rules)+len(saved[c].Rules) > 0 {
				t.Errorf("%s: %s %s (-wanted +saved):\n%s", name, table, c, diff)
			}
			if diff := cmp.Diff(saved[c].Rules, sim.Rules(table, c)); diff != "" && len(rules) > 0 {
				t.Errorf("%s: %s %s (-saved +simulated):\n%s", name, table, c, diff)
			}
		}
	}
}
