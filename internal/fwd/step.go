package fwd

import (
	"cmp"
	"slices"
)

// portChange is one service port in two fragments of its Service.
type portChange struct {
	// frontends and endpoints count what the port has, in the fragment that has more of it.
	frontends, endpoints int
	// differs says that a frontend or a pool is not the same in both.
	differs bool
	// linked are service ports that own a frontend of this one in the other fragment.
	linked []ServicePort
}

// work estimates what it takes to render and write the port: each frontend with its endpoints.
func (c *portChange) work() int { return c.frontends * (1 + c.endpoints) }

// comparePorts compares two fragments of a Service by service port.
func comparePorts(from, to *Fragment) map[ServicePort]*portChange {
	ports := make(map[ServicePort]*portChange)
	port := func(k ServicePort) *portChange {
		if ports[k] == nil {
			ports[k] = &portChange{}
		}
		return ports[k]
	}
	merge(from.Frontends, to.Frontends, compareFrontends, func(a, b *Frontend) {
		same := a != nil && b != nil && a.Equal(*b)
		add := func(f *Frontend) {
			c := port(f.Owner)
			c.frontends++
			c.differs = c.differs || !same
		}
		switch {
		case b == nil:
			add(a)
		case a == nil || a.Owner == b.Owner:
			add(b)
		default:
			add(a)
			add(b)
			ports[a.Owner].linked = append(ports[a.Owner].linked, b.Owner)
			ports[b.Owner].linked = append(ports[b.Owner].linked, a.Owner)
		}
	})
	merge(from.Pools, to.Pools, comparePools, func(a, b *Pool) {
		p := b
		if b == nil || a != nil && len(a.Endpoints) > len(b.Endpoints) {
			p = a
		}
		c := port(p.Key.Port)
		c.endpoints += len(p.Endpoints)
		c.differs = c.differs || a == nil || b == nil || !a.Equal(*b)
	})
	return ports
}

func compareFrontends(a, b *Frontend) int { return a.Key.Compare(b.Key) }
func comparePools(a, b *Pool) int         { return a.Key.Compare(b.Key) }
func compareServing(a, b *ServingPort) int {
	return cmp.Or(a.Port.Compare(b.Port), cmp.Compare(a.Family, b.Family))
}

// merge calls yield for each element of two sorted lists, with equal ones together; nil stands for
// none.
func merge[T any](a, b []T, compare func(a, b *T) int, yield func(a, b *T)) {
	for len(a) > 0 || len(b) > 0 {
		var order int
		switch {
		case len(a) == 0:
			order = 1
		case len(b) == 0:
			order = -1
		default:
			order = compare(&a[0], &b[0])
		}
		var x, y *T
		if order <= 0 {
			x, a = &a[0], a[1:]
		}
		if order >= 0 {
			y, b = &b[0], b[1:]
		}
		yield(x, y)
	}
}

// Step returns a fragment on the way from one fragment of a Service to another, so that a large
// change can be written in several transactions. Some service ports that differ are those of to, at
// least one and not many more frontends and endpoints than size; the other ports are those of from.
// done says that the result is to.
func Step(from, to *Fragment, size int) (next *Fragment, done bool) {
	// Nearly all changes are small, which is found out without comparing anything.
	if (len(from.Frontends)+len(to.Frontends))*(1+from.endpoints()+to.endpoints()) <= size {
		return to, true
	}
	ports := comparePorts(from, to)
	var changed []ServicePort
	work := 0
	for k, c := range ports {
		if c.differs {
			changed = append(changed, k)
			work += c.work()
		}
	}
	if work <= size {
		return to, true
	}
	slices.SortFunc(changed, ServicePort.Compare)
	taken := make(map[ServicePort]bool, len(changed))
	work = 0
	var take func(ServicePort)
	take = func(k ServicePort) {
		if !taken[k] {
			taken[k] = true
			work += ports[k].work()
			for _, other := range ports[k].linked { // a frontend passes from one to the other in one transaction
				take(other)
			}
		}
	}
	for _, k := range changed {
		if work < size {
			take(k)
		}
	}
	if len(taken) == len(changed) {
		return to, true
	}
	out := *to
	out.Frontends = mix(from.Frontends, to.Frontends, compareFrontends, func(f *Frontend) bool { return taken[f.Owner] })
	out.Pools = mix(from.Pools, to.Pools, comparePools, func(p *Pool) bool { return taken[p.Key.Port] })
	out.Serving = mix(from.Serving, to.Serving, compareServing, func(s *ServingPort) bool { return taken[s.Port] })
	return &out, false
}

// endpoints is the sum over all pools.
func (f *Fragment) endpoints() (n int) {
	for i := range f.Pools {
		n += len(f.Pools[i].Endpoints)
	}
	return n
}

// mix returns the elements of to that are taken, and those of from that are not.
func mix[T any](from, to []T, compare func(a, b *T) int, taken func(*T) bool) []T {
	out := make([]T, 0, max(len(from), len(to)))
	merge(from, to, compare, func(a, b *T) {
		switch {
		case b != nil && taken(b):
			out = append(out, *b)
		case a != nil && !taken(a):
			out = append(out, *a)
		}
	})
	return out
}

// Unchanged returns whether the frontends and pools of a service port are the same in Old and New.
func (c ServiceChange) Unchanged() func(ServicePort) bool {
	if c.Old == nil || c.New == nil {
		return func(ServicePort) bool { return false }
	}
	ports := comparePorts(c.Old, c.New)
	return func(k ServicePort) bool { return ports[k] == nil || !ports[k].differs }
}
