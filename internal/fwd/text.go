package fwd

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The text form of a table has one line for each object: first the header, then Services, frontends, claims, pools and
// lists of serving endpoints, each sorted. A line is a word that names the kind of object, its key, and fields.
//
//	header masqueradebit=14 cidr4=10.0.0.0/8 nodeports4=all,loopback local=192.168.0.2
//	service default/web created=1700000000 healthcheck=30000 localendpoints=1
//	frontend node4:30080/tcp kind=NodePort owner=default/web:http/tcp all=reject,no-endpoints
//	frontend 10.96.0.1:80/tcp kind=ClusterIP owner=default/web:http/tcp outside=forward,cluster,masquerade,policy-cluster …
//	claim 10.96.0.9:80/tcp …
//	pool default/web:http/tcp family=IPv4 scope=cluster affinity=10800 endpoints=10.0.0.1:80/local,10.0.0.2:80/draining/weight:2
//	serving default/web:dns/udp family=IPv4 endpoints=10.0.0.1:53
//
// A claim is a frontend whose key another Service owns: what was put is written, so that a table that is read behaves as
// the one that was written does. Fields with their zero value are left out, as is the weight 1. Names that hold anything but letters,
// digits, "-", "_" and "." are quoted as Go strings.

// WriteText writes the text form of the table. ParseText reads it. An error is one of w.
func (t *Table) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	writeHeader(b, &t.header)
	owners := slices.SortedFunc(maps.Keys(t.services), Service.Compare)
	for _, o := range owners {
		writeService(b, t.services[o].put)
	}
	t.writeFrontends(b, owners)
	for _, o := range owners {
		for i := range t.services[o].put.Pools {
			writePool(b, &t.services[o].put.Pools[i])
		}
	}
	for _, o := range owners {
		for _, s := range t.services[o].put.Serving {
			fmt.Fprintf(b, "serving %s family=%s endpoints=%s\n", portText(s.Port), s.Family, join(s.Endpoints, netip.AddrPort.String))
		}
	}
	return b.Flush()
}

func writeHeader(w io.Writer, h *Header) {
	fmt.Fprintf(w, "header masqueradebit=%d", h.MasqueradeBit)
	for i, fam := range Families {
		d, np := h.Detector[i], h.NodePorts[i]
		if d.Prefix.IsValid() {
			fmt.Fprintf(w, " cidr%d=%s", fam, d.Prefix)
		}
		if d.Bridge != "" {
			fmt.Fprintf(w, " bridge%d=%s", fam, nameText(d.Bridge))
		}
		if d.InterfacePrefix != "" {
			fmt.Fprintf(w, " ifprefix%d=%s", fam, nameText(d.InterfacePrefix))
		}
		var on []string
		if np.All {
			on = append(on, "all")
		}
		if np.Loopback {
			on = append(on, "loopback")
		}
		for _, p := range np.Prefixes {
			on = append(on, p.String())
		}
		if len(on) > 0 {
			fmt.Fprintf(w, " nodeports%d=%s", fam, strings.Join(on, ","))
		}
	}
	for i, fam := range Families {
		if h.MasqueradeSource[i].IsValid() {
			fmt.Fprintf(w, " masqueradesource%d=%s", fam, h.MasqueradeSource[i])
		}
	}
	if h.RejectOtherPorts {
		fmt.Fprint(w, " otherports=reject")
	}
	for i, fam := range Families {
		if len(h.ServiceCIDRs[i]) > 0 {
			fmt.Fprintf(w, " servicecidrs%d=%s", fam, join(h.ServiceCIDRs[i], netip.Prefix.String))
		}
	}
	if h.DropUnallocated {
		fmt.Fprint(w, " unallocated=drop")
	}
	if len(h.LocalAddrs) > 0 {
		fmt.Fprintf(w, " local=%s", join(h.LocalAddrs, netip.Addr.String))
	}
	fmt.Fprintln(w)
}

func writeService(w io.Writer, f *Fragment) {
	fmt.Fprintf(w, "service %s created=%d", serviceText(f.Owner), f.CreatedUnix)
	if f.HealthCheck.Port != 0 {
		fmt.Fprintf(w, " healthcheck=%d", f.HealthCheck.Port)
	}
	if f.HealthCheck.LocalEndpoints != 0 {
		fmt.Fprintf(w, " localendpoints=%d", f.HealthCheck.LocalEndpoints)
	}
	for i, names := range emptyFields {
		for policy, name := range names {
			if n := f.LocalPolicyEmpty[i][policy]; n != 0 {
				fmt.Fprintf(w, " %s=%d", name, n)
			}
		}
	}
	if len(f.Leaving) > 0 {
		fmt.Fprintf(w, " leaving=%s", join(f.Leaving, netip.AddrPort.String))
	}
	fmt.Fprintln(w)
}

// emptyFields are the names of Fragment.LocalPolicyEmpty by its index.
var emptyFields = [2][2]string{{"internalempty4", "externalempty4"}, {"internalempty6", "externalempty6"}}

// writeFrontends writes the frontends of all Services by key, then the claims by key and Service.
func (t *Table) writeFrontends(w io.Writer, owners []Service) {
	var won, lost []*Frontend
	for _, o := range owners {
		put := t.services[o].put
		for i := range put.Frontends {
			f := &put.Frontends[i]
			if t.owners[f.Key].Owner.Service == o {
				won = append(won, f)
			} else {
				lost = append(lost, f)
			}
		}
	}
	for _, group := range []struct {
		word      string
		frontends []*Frontend
	}{{"frontend", won}, {"claim", lost}} {
		slices.SortFunc(group.frontends, func(a, b *Frontend) int {
			return cmp.Or(a.Key.Compare(b.Key), a.Owner.Compare(b.Owner))
		})
		for _, f := range group.frontends {
			writeFrontend(w, group.word, f)
		}
	}
}

func writeFrontend(w io.Writer, word string, f *Frontend) {
	fmt.Fprintf(w, "%s %s kind=%s owner=%s", word, f.Key, f.Kind, portText(f.Owner))
	if f.Routes[Outside] == f.Routes[Pod] && f.Routes[Pod] == f.Routes[Host] {
		fmt.Fprintf(w, " all=%s", routeText(f.Routes[Outside]))
	} else {
		for c, r := range f.Routes {
			fmt.Fprintf(w, " %s=%s", Class(c), routeText(r))
		}
	}
	if len(f.Sources) > 0 {
		fmt.Fprintf(w, " sources=%s", join(f.Sources, netip.Prefix.String))
	}
	fmt.Fprintln(w)
}

func writePool(w io.Writer, p *Pool) {
	fmt.Fprintf(w, "pool %s family=%s scope=%s", portText(p.Key.Port), p.Key.Family, p.Key.Scope)
	if p.AffinitySec != 0 {
		fmt.Fprintf(w, " affinity=%d", p.AffinitySec)
	}
	if p.Scheduler != "" {
		fmt.Fprintf(w, " scheduler=%s", nameText(p.Scheduler))
	}
	if p.SchedulerFlags != 0 {
		fmt.Fprintf(w, " schedulerflags=%s", p.SchedulerFlags)
	}
	fmt.Fprintf(w, " endpoints=%s\n", join(p.Endpoints, endpointText))
}

func routeText(r Route) string {
	s := r.Action.String()
	if r.Action == Forward {
		s += "," + r.Scope.String()
	}
	if r.Masquerade {
		s += ",masquerade"
	}
	return s + "," + handle(r.Reason)
}

// handle is the name of a reason, without its explanation.
func handle(r Reason) string {
	name, _, _ := strings.Cut(r.String(), ":")
	return name
}

func endpointText(e Endpoint) string {
	s := e.Addr.String()
	if e.Local {
		s += "/local"
	}
	if e.Terminating {
		s += "/draining"
	}
	if e.Weight != 1 {
		s += "/weight:" + strconv.FormatUint(uint64(e.Weight), 10)
	}
	if e.Instance != 0 {
		s += "/instance:" + strconv.FormatUint(uint64(e.Instance), 10)
	}
	return s
}

func serviceText(s Service) string { return nameText(s.Namespace) + "/" + nameText(s.Name) }

func portText(p ServicePort) string {
	return serviceText(p.Service) + ":" + nameText(p.Port) + "/" + p.Proto.String()
}

// nameText quotes a name where it could not be told from what surrounds it.
func nameText(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !isNameRune(r) }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

func isNameRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.'
}

func join[T any](list []T, text func(T) string) string {
	parts := make([]string, len(list))
	for i, v := range list {
		parts[i] = text(v)
	}
	return strings.Join(parts, ",")
}
