package ipvs

import (
	"context"
	"hash/maphash"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// The kernel tells nobody who changes virtual servers or sets, so that these are looked at again and again: the shortest time
// between two looks, and how many times as long as a look itself.
const (
	lookEvery = time.Second
	lookShare = 100
)

// looker notices that others have changed virtual servers, real servers or sets of ours. A look costs a fraction of
// a reading: of sets it asks for the number of elements alone, and it keeps nothing but sums.
type looker struct {
	servers interface {
		Read(context.Context) (hostipvs.Content, error)
	}
	// sizes returns the number of elements of each set whose name begins with a prefix.
	sizes   func(ctx context.Context, prefix string) (map[string]uint32, error)
	targets []*target
	hints   backend.Hints
	seed    maphash.Seed
	// last is what was seen of each target by the last of so many looks.
	last  []sight
	looks int
}

// sight is what a look saw of one family.
type sight struct {
	// writes is the target's count of its own writes; known says that none went on while it looked.
	writes uint64
	known  bool
	// servers and sets are sums over what is there.
	servers, sets uint64
}

func newLooker(servers hostipvs.Interface, sizes func(context.Context, string) (map[string]uint32, error), targets []*target, hints backend.Hints) *looker {
	return &looker{servers: servers, sizes: sizes, targets: targets, hints: hints, seed: maphash.MakeSeed(), last: make([]sight, len(targets))}
}

// run looks until the context ends.
func (l *looker) run(ctx context.Context) {
	for pause := lookEvery; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		l.look(ctx)
		pause = max(lookEvery, lookShare*time.Since(began))
	}
}

// look looks once, and gives hints where something is not as it was at the last look though the target wrote nothing. Where
// the target wrote since then, or a look failed, nobody knows whether others wrote as well, which only a reading can tell.
func (l *looker) look(ctx context.Context) {
	now := make([]sight, len(l.targets))
	for i, t := range l.targets {
		now[i].writes, now[i].known = t.quiet()
	}
	content, err := l.servers.Read(ctx)
	for i, t := range l.targets {
		s := &now[i]
		sizes, serr := l.sizes(ctx, names(t.opts.Instance).Name(setPrefix(t.family)))
		s.servers = l.sumServers(t, content.Servers)
		for name, n := range sizes {
			s.sets += maphash.Comparable(l.seed, struct {
				name string
				n    uint32
			}{name, n})
		}
		writes, quiet := t.quiet()
		s.known = s.known && quiet && writes == s.writes && err == nil && serr == nil
		switch old := l.last[i]; {
		case !s.known || l.looks == 0:
		case !old.known || old.writes != s.writes:
			l.hints.Send(backend.Drift{Family: t.family, What: "virtual servers or sets"})
		case old.servers != s.servers:
			l.hints.Send(backend.Drift{Family: t.family, What: "virtual servers"})
		case old.sets != s.sets:
			l.hints.Send(backend.Drift{Family: t.family, What: "sets"})
		}
	}
	l.looks++
	l.last = now
}

// sumServers adds up the virtual servers that may be the target's, with their real servers.
func (l *looker) sumServers(t *target, servers []hostipvs.Server) (sum uint64) {
	for _, srv := range servers {
		if !t.owns(srv.Settings.Flags, false) || t.foreign(srv.VirtualServer.Addr.Addr()) {
			continue
		}
		sum += maphash.Comparable(l.seed, struct {
			hostipvs.VirtualServer
			hostipvs.Settings
		}{srv.VirtualServer, srv.Settings})
		for _, r := range srv.Reals {
			sum += maphash.Comparable(l.seed, struct {
				hostipvs.VirtualServer
				hostipvs.RealServer
			}{srv.VirtualServer, r.RealServer})
		}
	}
	return sum
}

// quiet returns the count of the target's own writes, and whether none goes on.
func (t *target) quiet() (writes uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writes, t.writing == 0
}
