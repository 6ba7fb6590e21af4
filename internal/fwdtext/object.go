package fwdtext

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// field is one name=value of an object: its text now, and how to set it from a text.
type field struct {
	name string
	// required fields are always written and have to be there. Others are left out where they have
	// no text.
	required bool
	text     string
	set      func(string) error
}

// value is a field of an object. It has no text where it is zero and not required.
func value[T comparable](name string, v *T, required bool, format func(T) string, parse func(string) (T, error)) field {
	f := field{name: name, required: required, set: func(s string) (err error) { *v, err = parse(s); return err }}
	if zero := *new(T); required || *v != zero {
		f.text = format(*v)
	}
	return f
}

// list is a field with any number of values, separated by commas.
func list[T any](name string, v *[]T, required bool, format func(T) string, parse func(string) (T, error)) field {
	texts := make([]string, len(*v))
	for i, item := range *v {
		texts[i] = format(item)
	}
	return field{name: name, required: required, text: strings.Join(texts, ","), set: func(s string) error {
		*v = nil
		if s == "" {
			return nil
		}
		for part := range strings.SplitSeq(s, ",") {
			item, err := parse(part)
			if err != nil {
				return err
			}
			*v = append(*v, item)
		}
		return nil
	}}
}

func number[T uint8 | uint16 | uint32 | int | int64](name string, v *T, required bool) field {
	return value(name, v, required, func(n T) string { return strconv.FormatInt(int64(n), 10) }, parseNumber[T])
}

func name(name string, v *string) field {
	return value(name, v, false, url.QueryEscape, url.QueryUnescape)
}

// choice is a field that has one of a few values, by their names.
func choice[T interface {
	comparable
	fmt.Stringer
}](name string, v *T, values ...T) field {
	return value(name, v, true, T.String, func(s string) (T, error) { return oneOf(s, values...) })
}

// flag is a field that has one value or is not there.
func flag(name, set string, v *bool) field {
	return value(name, v, false, func(bool) string { return set }, func(s string) (bool, error) {
		if s != set {
			return false, fmt.Errorf("%q: want %s", s, set)
		}
		return true, nil
	})
}

func headerFields(h *fwd.Header) []field {
	fields := []field{number("masqueradebit", &h.MasqueradeBit, true)}
	for i := range fwd.Families {
		v := version(i)
		fields = append(fields,
			value("cidr"+v, &h.Detector[i].Prefix, false, netip.Prefix.String, netip.ParsePrefix),
			name("bridge"+v, &h.Detector[i].Bridge),
			name("ifprefix"+v, &h.Detector[i].InterfacePrefix),
			field{name: "nodeports" + v, text: formatNodePorts(h.NodePorts[i]), set: func(s string) (err error) {
				h.NodePorts[i], err = parseNodePorts(s)
				return err
			}})
	}
	for i := range fwd.Families {
		fields = append(fields,
			value("masqueradesource"+version(i), &h.MasqueradeSource[i], false, netip.Addr.String, netip.ParseAddr),
			list("servicecidrs"+version(i), &h.ServiceCIDRs[i], false, netip.Prefix.String, netip.ParsePrefix))
	}
	return append(fields,
		flag("otherports", "reject", &h.RejectOtherPorts),
		flag("unallocated", "drop", &h.DropUnallocated),
		list("local", &h.LocalAddrs, false, netip.Addr.String, netip.ParseAddr))
}

// version is the end of the name of a header's field, by Family.Index.
func version(i int) string { return strconv.Itoa(int(fwd.Families[i])) }

func serviceFields(f *fwd.Fragment) []field {
	fields := []field{
		number("created", &f.CreatedUnix, true),
		number("healthcheck", &f.HealthCheck.Port, false),
		number("localendpoints", &f.HealthCheck.LocalEndpoints, false),
	}
	for i := range fwd.Families {
		fields = append(fields,
			number("internalempty"+version(i), &f.LocalPolicyEmpty[i][0], false),
			number("externalempty"+version(i), &f.LocalPolicyEmpty[i][1], false))
	}
	return append(fields, list("leaving", &f.Leaving, false, netip.AddrPort.String, netip.ParseAddrPort))
}

// frontendFields are those of a frontend or claim. With all its routes are one field.
func frontendFields(f *fwd.Frontend, all bool) []field {
	fields := []field{
		choice("kind", &f.Kind, fwd.ClusterIP, fwd.ExternalIP, fwd.LoadBalancer, fwd.NodePort),
		value("owner", &f.Owner, true, formatPort, parsePort),
	}
	if all {
		fields = append(fields, field{name: "all", required: true, text: formatRoute(f.Routes[0]), set: func(s string) error {
			r, err := parseRoute(s)
			f.Routes = [fwd.NumClasses]fwd.Route{r, r, r}
			return err
		}})
	} else {
		for c := range f.Routes {
			fields = append(fields, value(fwd.Class(c).String(), &f.Routes[c], true, formatRoute, parseRoute))
		}
	}
	return append(fields, list("sources", &f.Sources, false, netip.Prefix.String, netip.ParsePrefix))
}

func poolFields(p *fwd.Pool) []field {
	return []field{
		choice("family", &p.Key.Family, fwd.IPv4, fwd.IPv6),
		choice("scope", &p.Key.Scope, fwd.Cluster, fwd.Local),
		number("affinity", &p.AffinitySec, false),
		name("scheduler", &p.Scheduler),
		value("schedulerflags", &p.SchedulerFlags, false, fwd.SchedulerFlags.String, fwd.ParseSchedulerFlags),
		list("endpoints", &p.Endpoints, true, formatEndpoint, parseEndpoint),
	}
}

func servingFields(s *fwd.ServingPort) []field {
	return []field{
		choice("family", &s.Family, fwd.IPv4, fwd.IPv6),
		list("endpoints", &s.Endpoints, true, netip.AddrPort.String, netip.ParseAddrPort),
	}
}
