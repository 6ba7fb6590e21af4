package iptables

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

func sortedFrontends(f []fwd.Frontend) []fwd.Frontend {
	slices.SortFunc(f, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	return f
}

func sortedPools(p []fwd.Pool) []fwd.Pool {
	slices.SortFunc(p, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
	return p
}

// plainFragment is what most Services are: one TCP port of a cluster IP, IPv4.
func plainFragment(i, endpoints int) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}, CreatedUnix: int64(i)}
	port := fwd.ServicePort{Service: f.Owner, Port: "http", Proto: fwd.TCP}
	masq := fwd.Route{Action: fwd.Forward, Masquerade: true}
	f.Frontends = []fwd.Frontend{{
		Key:   fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), Proto: fwd.TCP, Port: 80},
		Owner: port, Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: masq, fwd.Pod: {Action: fwd.Forward}, fwd.Host: masq},
	}}
	f.Pools = []fwd.Pool{samplePool(fwd.PoolKey{Port: port, Family: fwd.IPv4}, i, endpoints)}
	for e := range f.Pools[0].Endpoints {
		f.Pools[0].Endpoints[e].Weight = 1
	}
	return f
}
