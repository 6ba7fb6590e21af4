package fwdtext

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/fairlead/fairlead/internal/fwd"
)

func parseNumber[T uint8 | uint16 | uint32 | int | int64](s string) (T, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || int64(T(n)) != n {
		return 0, fmt.Errorf("%q: want a number that fits %T", s, T(0))
	}
	return T(n), nil
}

func oneOf[T fmt.Stringer](s string, values ...T) (T, error) {
	for _, v := range values {
		if v.String() == s {
			return v, nil
		}
	}
	return *new(T), fmt.Errorf("%q: want one of %v", s, values)
}

func formatNodePorts(a fwd.NodePortAddrs) string {
	var parts []string
	if a.All {
		parts = append(parts, "all")
	}
	if a.Loopback {
		parts = append(parts, "loopback")
	}
	for _, p := range a.Prefixes {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

func parseNodePorts(s string) (a fwd.NodePortAddrs, err error) {
	for part := range strings.SplitSeq(s, ",") {
		switch part {
		case "all":
			a.All = true
		case "loopback":
			a.Loopback = true
		default:
			p, err := netip.ParsePrefix(part)
			if err != nil {
				return a, err
			}
			a.Prefixes = append(a.Prefixes, p)
		}
	}
	return a, nil
}

// parseKey reads what Key.String writes.
func parseKey(s string) (k fwd.Key, err error) {
	addr, proto, _ := strings.Cut(s, "/")
	if k.Proto, err = oneOf(proto, fwd.TCP, fwd.UDP, fwd.SCTP); err != nil {
		return k, err
	}
	for _, fam := range fwd.Families {
		if port, ok := strings.CutPrefix(addr, fmt.Sprintf("node%d:", fam)); ok {
			k.Family = fam
			k.Port, err = parseNumber[uint16](port)
			return k, err
		}
	}
	ap, err := netip.ParseAddrPort(addr)
	k.Family, k.Addr, k.Port = fwd.FamilyOf(ap.Addr()), ap.Addr(), ap.Port()
	return k, err
}

func formatService(s fwd.Service) string {
	return url.QueryEscape(s.Namespace) + "/" + url.QueryEscape(s.Name)
}

func parseService(s string) (out fwd.Service, err error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok {
		return out, fmt.Errorf("%q: want namespace/name", s)
	}
	var errs [2]error
	out.Namespace, errs[0] = url.QueryUnescape(namespace)
	out.Name, errs[1] = url.QueryUnescape(name)
	return out, errors.Join(errs[:]...)
}

func formatPort(p fwd.ServicePort) string {
	return formatService(p.Service) + ":" + url.QueryEscape(p.Port) + "/" + p.Proto.String()
}

func parsePort(s string) (p fwd.ServicePort, err error) {
	service, rest, _ := strings.Cut(s, ":")
	port, proto, ok := strings.Cut(rest, "/")
	if !ok {
		return p, fmt.Errorf("%q: want namespace/name:port/protocol", s)
	}
	if p.Service, err = parseService(service); err != nil {
		return p, err
	}
	if p.Port, err = url.QueryUnescape(port); err != nil {
		return p, err
	}
	p.Proto, err = oneOf(proto, fwd.TCP, fwd.UDP, fwd.SCTP)
	return p, err
}

func formatRoute(r fwd.Route) string {
	s := r.Action.String()
	if r.Action == fwd.Forward {
		s += "," + r.Scope.String()
	}
	if r.Masquerade {
		s += ",masquerade"
	}
	reason, _, _ := strings.Cut(r.Reason.String(), ":")
	return s + "," + reason
}

// routes has every valid route by its text.
var routes = sync.OnceValue(func() map[string]fwd.Route {
	out := make(map[string]fwd.Route)
	for reason := range fwd.NumReasons {
		list := []fwd.Route{{Action: fwd.Drop}, {Action: fwd.Reject}}
		for scope := range fwd.NumScopes {
			list = append(list, fwd.Route{Action: fwd.Forward, Scope: scope}, fwd.Route{Action: fwd.Forward, Scope: scope, Masquerade: true})
		}
		for _, r := range list {
			r.Reason = reason
			out[formatRoute(r)] = r
		}
	}
	return out
})

func parseRoute(s string) (fwd.Route, error) {
	r, ok := routes()[s]
	if !ok {
		return r, fmt.Errorf("%q: want drop, reject, or forward with a scope and perhaps masquerade, then a reason", s)
	}
	return r, nil
}

func formatEndpoint(e fwd.Endpoint) string {
	s := e.Addr.String()
	if e.Local {
		s += "/local"
	}
	if e.Terminating {
		s += "/draining"
	}
	if e.Weight != 1 {
		s += fmt.Sprintf("/weight:%d", e.Weight)
	}
	if e.Instance != 0 {
		s += fmt.Sprintf("/instance:%d", e.Instance)
	}
	return s
}

func parseEndpoint(s string) (e fwd.Endpoint, err error) {
	parts := strings.Split(s, "/")
	e.Weight = 1
	e.Addr, err = netip.ParseAddrPort(parts[0])
	for _, part := range parts[1:] {
		if err != nil {
			break
		}
		switch name, n, _ := strings.Cut(part, ":"); name {
		case "local":
			e.Local = true
		case "draining":
			e.Terminating = true
		case "weight":
			e.Weight, err = parseNumber[uint32](n)
		case "instance":
			e.Instance, err = parseNumber[uint32](n)
		default:
			err = fmt.Errorf("%q: want local, draining, weight or instance", part)
		}
	}
	return e, err
}
