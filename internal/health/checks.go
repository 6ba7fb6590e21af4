package health

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// ReasonListen is the reason of the Event on a Service whose health-check node port cannot be
// served. It is kube-proxy's.
const ReasonListen = "FailedToStartServiceHealthcheck"

// weightHeader has the number of endpoints, by which a load balancer can weight nodes.
const weightHeader = "X-Load-Balancing-Endpoint-Weight"

// ChecksOptions are what Checks work with.
type ChecksOptions struct {
	// Node is the node's name, for Events.
	Node string
	// Healthy says whether forwarding on this node is fresh (State.Fresh).
	Healthy func() bool
	// Warn reports a Warning event on a Service.
	Warn func(s fwd.Service, reason, message string)
	Log  *slog.Logger
}

// Checks serves the health-check node ports of Services (type LoadBalancer with external traffic
// policy Local): the code is 200 while the node has ready endpoints of the Service, so that the
// load balancer uses this node. Update and Programmed belong to one goroutine, Run to another.
type Checks struct {
	o      ChecksOptions
	listen func(ctx context.Context, network, address string) (net.Listener, error)
	// For tests: retry is the time between two attempts to listen, and settled, if not nil, is
	// called by Run after each attempt with the number of calls of Programmed that it has seen.
	retry   time.Duration
	settled func(programmed int)

	// pending is, by fwd.Family.Index, what changed since the last Programmed, and pendingAddrs
	// where to listen, if that changed. They belong to the goroutine of Update. A claim on port 0
	// means none.
	pending      [2]map[fwd.Service]claim
	pendingAddrs []address

	wake chan struct{}
	// mu guards all fields below.
	mu sync.RWMutex
	// claims has each Service with a health-check node port, and ports the Services that claim a
	// port; the first one has it.
	claims map[fwd.Service]claim
	ports  map[uint16][]fwd.Service
	addrs  []address
	// programmed counts the calls of Programmed that changed something.
	programmed int
}

// claim is one Service's health-check node port.
type claim struct {
	port    uint16
	created int64
	local   int
}

// NewChecks returns Checks that do not listen before Programmed and Run.
func NewChecks(o ChecksOptions) *Checks {
	var lc net.ListenConfig
	return &Checks{
		o: o, listen: lc.Listen, retry: bindRetry, pending: [2]map[fwd.Service]claim{{}, {}}, wake: make(chan struct{}, 1),
		claims: make(map[fwd.Service]claim), ports: make(map[uint16][]fwd.Service),
	}
}

// Update records changes of the table. They take effect with Programmed.
func (c *Checks) Update(ch fwd.Changes) {
	if ch.Header != nil {
		c.pendingAddrs = addressesOf(ch.Header)
	}
	for _, s := range ch.Services {
		var now claim
		if s.New != nil {
			now = claim{port: s.New.HealthCheck.Port, created: s.New.CreatedUnix, local: s.New.HealthCheck.LocalEndpoints}
		}
		if now.port == 0 && (s.Old == nil || s.Old.HealthCheck.Port == 0) {
			continue
		}
		for i, concerned := range familiesOf(s) {
			if _, waits := c.pending[i][s.Owner]; concerned || waits {
				c.pending[i][s.Owner] = now
			}
		}
	}
}

// familiesOf says in which families the rules of a Service changed; both if it has no frontend.
func familiesOf(s fwd.ServiceChange) (in [2]bool) {
	for _, f := range []*fwd.Fragment{s.Old, s.New} {
		if f != nil {
			for _, fe := range f.Frontends {
				in[fe.Key.Family.Index()] = true
			}
		}
	}
	if in == [2]bool{} {
		return [2]bool{true, true}
	}
	return in
}

// Programmed says that the kernel has the rules of one family. From now on responses follow the
// updates so far of Services that have frontends of the family. Both families share one number, so
// the first one whose rules are written decides: while one family fails, load balancers of the
// other get the right response. It does not wait.
func (c *Checks) Programmed(f fwd.Family) {
	pending := c.pending[f.Index()]
	if len(pending) == 0 && c.pendingAddrs == nil {
		return
	}
	c.mu.Lock()
	c.programmed++
	for owner, now := range pending {
		c.take(owner, now)
	}
	if c.pendingAddrs != nil {
		c.addrs = c.pendingAddrs
	}
	c.mu.Unlock()
	clear(pending)
	c.pendingAddrs = nil
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// take replaces a Service's claim.
func (c *Checks) take(owner fwd.Service, now claim) {
	old := c.claims[owner]
	if old.port != now.port && old.port != 0 {
		others := slices.DeleteFunc(c.ports[old.port], func(s fwd.Service) bool { return s == owner })
		if c.ports[old.port] = others; len(others) == 0 {
			delete(c.ports, old.port)
		}
	}
	if now.port == 0 {
		delete(c.claims, owner)
		return
	}
	c.claims[owner] = now
	if old.port != now.port {
		c.ports[now.port] = append(c.ports[now.port], owner)
	}
	// As in other conflicts, the older Service wins.
	slices.SortFunc(c.ports[now.port], func(a, b fwd.Service) int {
		return cmp.Or(cmp.Compare(c.claims[a].created, c.claims[b].created), a.Compare(b))
	})
}

// handler serves all requests for a port, whatever their path and method.
func (c *Checks) handler(port uint16) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		owner, local, ok := c.owner(port)
		if !ok { // the port is being closed
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		healthy := c.o.Healthy()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set(weightHeader, strconv.Itoa(local))
		code := http.StatusOK
		if local == 0 || !healthy {
			code = http.StatusServiceUnavailable
		}
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
			owner.Namespace, owner.Name, local, healthy) // fails only if the client has gone away
	})
}

// owner returns the Service that has the port and the number of its endpoints on this node.
func (c *Checks) owner(port uint16) (owner fwd.Service, local int, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.ports[port]) == 0 {
		return fwd.Service{}, 0, false
	}
	owner = c.ports[port][0]
	return owner, c.claims[owner].local, true
}

// wanted returns the claims of each port, where to listen, and the number of calls of Programmed so
// far.
func (c *Checks) wanted() (claims map[uint16][]fwd.Service, at []address, programmed int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	claims = make(map[uint16][]fwd.Service, len(c.ports))
	for port, owners := range c.ports {
		claims[port] = slices.Clone(owners)
	}
	return claims, c.addrs, c.programmed
}

// address is where a port has a listener. The zero addr means all addresses of the network.
type address struct {
	// network is "tcp" for both families with one socket, or that of one family.
	network string
	addr    netip.Addr
}

func (a address) text(port uint16) string {
	if !a.addr.IsValid() {
		return net.JoinHostPort("", strconv.Itoa(int(port)))
	}
	return netip.AddrPortFrom(a.addr, port).String()
}

// addressesOf returns the addresses on which node ports, and so health-check node ports, are
// served. It is not nil.
func addressesOf(h *fwd.Header) []address {
	if h.NodePorts[0].All && h.NodePorts[1].All {
		return []address{{network: "tcp"}}
	}
	out := []address{}
	for i, f := range fwd.Families {
		on := h.NodePorts[i]
		network := [2]string{"tcp4", "tcp6"}[i]
		if on.All {
			// A node without an IPv6 address may not support IPv6 at all, and has no clients of it.
			if f == fwd.IPv4 || slices.ContainsFunc(h.LocalAddrs, netip.Addr.Is6) {
				out = append(out, address{network: network})
			}
			continue
		}
		for _, a := range h.LocalAddrs {
			// A link-local address would need an interface.
			if fwd.FamilyOf(a) == f && on.Serves(a, false) && !a.IsLinkLocalUnicast() {
				out = append(out, address{network, a})
			}
		}
		if loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1}); f == fwd.IPv4 && on.Loopback {
			out = append(out, address{network, loopback})
		}
	}
	return out
}

// server serves one port.
type server struct {
	http      *http.Server
	listeners map[address]net.Listener
}

// Run serves until the context ends; it returns when all its goroutines have ended. It is called
// once.
func (c *Checks) Run(ctx context.Context) {
	r := runner{Checks: c, servers: make(map[uint16]*server), limit: newConnLimit(maxConns), reported: make(map[fwd.Service]string)}
	defer r.wg.Wait()
	defer r.closeAll()
	for {
		var again <-chan time.Time
		ports, addrs, programmed := c.wanted()
		if r.settle(ctx, ports, addrs) {
			again = time.After(c.retry)
		}
		if c.settled != nil {
			c.settled(programmed)
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-again:
		}
	}
}

// runner is what Run's goroutine works with.
type runner struct {
	*Checks
	servers map[uint16]*server
	// limit is shared by all servers.
	limit *connLimit
	// reported is the failure that was reported for each Service whose port is not served.
	reported map[fwd.Service]string
	wg       sync.WaitGroup
}

func (r *runner) closeAll() {
	for port := range r.servers {
		r.close(port)
	}
}

// settle opens and closes listeners. It returns whether something failed and must be retried.
func (r *runner) settle(ctx context.Context, ports map[uint16][]fwd.Service, addrs []address) (retry bool) {
	for port := range r.servers {
		if _, ok := ports[port]; !ok {
			r.close(port)
		}
	}
	failures := make(map[fwd.Service]string)
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		claims := ports[port]
		text := r.serve(ctx, port, addrs)
		retry = retry || text != ""
		r.report(failures, claims[0], port, text)
		for _, loser := range claims[1:] {
			r.report(failures, loser, port, "the port belongs to Service "+claims[0].String())
		}
	}
	r.reported = failures
	return retry
}

// serve listens for a port on the addresses and nowhere else. It returns the first failure, or an
// empty string.
func (r *runner) serve(ctx context.Context, port uint16, addrs []address) string {
	s := r.servers[port]
	if s == nil {
		h := newHTTPServer(r.handler(port), r.limit, r.o.Log)
		h.DisableGeneralOptionsHandler = true // "OPTIONS *" gets the same response as every request
		s = &server{http: h, listeners: make(map[address]net.Listener)}
		r.servers[port] = s
	}
	for at, l := range s.listeners {
		if !slices.Contains(addrs, at) {
			_ = l.Close() // fails only if it is closed already
			delete(s.listeners, at)
		}
	}
	text := ""
	for _, at := range addrs {
		if s.listeners[at] != nil {
			continue
		}
		l, err := r.listen(ctx, at.network, at.text(port))
		if err != nil {
			if ctx.Err() != nil {
				return ""
			}
			text = cmp.Or(text, err.Error())
			continue
		}
		s.listeners[at] = l
		r.wg.Go(func() { _ = s.http.Serve(l) }) // ends when the listener is closed
	}
	return text
}

// report adds to failures why a port cannot be served for a Service, empty if it is served. If that
// is new, it logs it and makes an Event.
func (r *runner) report(failures map[fwd.Service]string, owner fwd.Service, port uint16, text string) {
	before, failing := r.reported[owner]
	switch {
	case text == "" && failing:
		r.o.Log.Info("serving a health-check node port after earlier failures", "service", owner.String(), "port", port)
	case text == "" || failing && before == text:
	default:
		r.o.Log.Error("cannot serve a health-check node port, retrying every 5s", "service", owner.String(), "port", port, "error", text)
		r.o.Warn(owner, ReasonListen, fmt.Sprintf("node %s failed to start healthcheck %q on port %d: %s", r.o.Node, owner.String(), port, text))
	}
	if text != "" {
		failures[owner] = text
	}
}

// close closes listeners and connections. Errors mean that they are closed already.
func (r *runner) close(port uint16) {
	for _, l := range r.servers[port].listeners {
		_ = l.Close() // the server may not know it yet
	}
	_ = r.servers[port].http.Close()
	delete(r.servers, port)
}
