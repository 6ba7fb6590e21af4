package kube

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Slice converts an EndpointSlice. It returns nil if the slice is not handled: address type FQDN,
// without a name, or without a Service in label kubernetes.io/service-name. Problems lists the
// invalid fields that were ignored.
func (c Converter) Slice(s *discoveryv1.EndpointSlice) (*cluster.Slice, []Problem) {
	if s == nil || s.AddressType == discoveryv1.AddressTypeFQDN || s.Labels[discoveryv1.LabelServiceName] == "" {
		return nil, nil
	}
	p := &problems{object: "EndpointSlice " + s.Namespace + "/" + s.Name}
	if s.Name == "" || s.Namespace == "" {
		p.add("metadata", "name or namespace is missing")
		return nil, p.all()
	}
	if s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6 {
		p.add("addressType", clip(s.AddressType)+" is unknown")
		return nil, p.all()
	}
	in := c.interned
	namespace := in.str(s.Namespace)
	v := &cluster.Slice{
		Name:            cluster.SliceName{Namespace: namespace, Name: s.Name},
		Service:         fwd.Service{Namespace: namespace, Name: s.Labels[discoveryv1.LabelServiceName]},
		Family:          fwd.IPv4,
		Ports:           slicePorts(s.Ports, in, p),
		TriggerUnixNano: triggerTime(s.Annotations[v1.EndpointsLastChangeTriggerTime], p),
	}
	if s.AddressType == discoveryv1.AddressTypeIPv6 {
		v.Family = fwd.IPv6
	}
	v.Endpoints = endpoints(s.Endpoints, v.Family, in, p)
	return v, p.all()
}

// slicePorts returns the ports that have a number and a name, which may be empty, sorted.
func slicePorts(ports []discoveryv1.EndpointPort, in *interner, p *problems) []cluster.SlicePort {
	out := make([]cluster.SlicePort, 0, len(ports))
	for i := range ports {
		port := &ports[i]
		if port.Name == nil {
			p.item("ports", i, ".name", "is missing")
			continue
		}
		if port.Port == nil {
			p.item("ports", i, ".port", "is missing")
			continue
		}
		number, ok := optionalPort(*port.Port)
		if !ok || number == 0 {
			p.item("ports", i, ".port", portMessage(*port.Port))
			continue
		}
		protocol := fwd.TCP
		if port.Protocol != nil {
			if protocol, ok = protocolOf(*port.Protocol); !ok {
				p.item("ports", i, ".protocol", clip(*port.Protocol)+" is unknown")
				continue
			}
		}
		out = append(out, cluster.SlicePort{Name: in.str(*port.Name), Protocol: protocol, Port: number})
	}
	slices.SortFunc(out, func(a, b cluster.SlicePort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}

// endpoints returns the entries whose first address is of the slice's family, sorted by address. If
// entries share an address, the one that is ready comes first.
func endpoints(list []discoveryv1.Endpoint, family fwd.Family, in *interner, p *problems) []cluster.Endpoint {
	out := make([]cluster.Endpoint, 0, len(list))
	for i := range list {
		e := &list[i]
		if len(e.Addresses) == 0 {
			p.item("endpoints", i, ".addresses", "is empty")
			continue
		}
		a, ok := parseAddr(e.Addresses[0])
		if !ok {
			p.item("endpoints", i, ".addresses[0]", clip(e.Addresses[0])+" is not an IP address")
			continue
		}
		if fwd.FamilyOf(a) != family {
			p.item("endpoints", i, ".addresses[0]", fmt.Sprintf("%s does not have the slice's address type", a))
			continue
		}
		v := cluster.Endpoint{
			Addr:        a,
			Ready:       ptr.Deref(e.Conditions.Ready, true),
			Serving:     ptr.Deref(e.Conditions.Serving, true),
			Terminating: ptr.Deref(e.Conditions.Terminating, false),
		}
		if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
			v.Pod, v.Instance = ref.Name, instance(ref.UID)
		}
		place := cluster.Place{Node: ptr.Deref(e.NodeName, ""), Zone: ptr.Deref(e.Zone, "")}
		if e.Hints != nil {
			place.ZoneHints = hints(e.Hints.ForZones, func(z discoveryv1.ForZone) string { return z.Name })
			place.NodeHints = hints(e.Hints.ForNodes, func(n discoveryv1.ForNode) string { return n.Name })
		}
		v.Place = in.place(place)
		out = append(out, v)
	}
	joinPods(out)
	slices.SortFunc(out, compareEndpoints)
	return slices.CompactFunc(out, cluster.Endpoint.Equal)
}

// joinPods stores the names of all pods in one string, which takes less memory than separate
// strings.
func joinPods(eps []cluster.Endpoint) {
	var all strings.Builder
	n := 0
	for i := range eps {
		n += len(eps[i].Pod)
	}
	all.Grow(n)
	for i := range eps {
		all.WriteString(eps[i].Pod)
	}
	names := all.String()
	for i := range eps {
		n := len(eps[i].Pod)
		eps[i].Pod, names = names[:n], names[n:]
	}
}

// instance returns a hash of a UID, which is never 0; 0 means no UID.
func instance(uid types.UID) uint32 {
	if uid == "" {
		return 0
	}
	h := fnv.New32a()
	h.Write([]byte(uid))
	return max(h.Sum32(), 1)
}

func compareEndpoints(a, b cluster.Endpoint) int {
	if d := a.Addr.Compare(b.Addr); d != 0 {
		return d
	}
	p, q := a.Where(), b.Where()
	return cmp.Or(trueFirst(a.Ready, b.Ready), trueFirst(a.Serving, b.Serving),
		trueFirst(b.Terminating, a.Terminating), cmp.Compare(p.Node, q.Node), cmp.Compare(p.Zone, q.Zone),
		cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Instance, b.Instance),
		slices.Compare(p.ZoneHints, q.ZoneHints), slices.Compare(p.NodeHints, q.NodeHints))
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// hints returns the names, sorted and without duplicates and empty ones.
func hints[H any](list []H, name func(H) string) []string {
	var out []string
	for _, h := range list {
		if n := name(h); n != "" {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// triggerTime parses the annotation of the endpoint slice controller: RFC 3339 with nanoseconds; 0
// for none. It must be representable in nanoseconds (1970 to 2262).
func triggerTime(s string, p *problems) int64 {
	if s == "" {
		return 0
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() < 1970 || t.Year() > 2261 {
		p.add("metadata.annotations["+v1.EndpointsLastChangeTriggerTime+"]", clip(s)+" is not a time")
		return 0
	}
	return max(t.UnixNano(), 0)
}
