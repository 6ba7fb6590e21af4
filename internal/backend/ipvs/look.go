package ipvs

import (
	"context"
	"hash/maphash"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// The kernel does not notify about changes of virtual servers and sets, so they are polled.
// lookEvery is the minimum interval, lookShare the minimum ratio of the interval to the duration of
// a poll.
const (
	lookEvery = time.Second
	lookShare = 100
)

// looker detects changes of our virtual servers, real servers and sets by others. A poll costs a
// fraction of a Read: of sets it reads only the number of entries, and it keeps only checksums.
type looker struct {
	servers interface {
		Read(context.Context) (hostipvs.Content, error)
	}
	// sizes returns the number of entries of each set whose name begins with a prefix.
	sizes   func(ctx context.Context, prefix string) (map[string]uint32, error)
	targets []*target
	hints   backend.Hints
	seed    maphash.Seed
	// last is the result of the last poll by target; looks counts polls.
	last  []sight
	looks int
}

// sight is the result of a poll of one family.
type sight struct {
	// writes is the target's count of its own writes; known means that none was in progress during
	// the poll.
	writes uint64
	known  bool
	// servers and sets are checksums.
	servers, sets uint64
}

func newLooker(servers hostipvs.Interface, sizes func(context.Context, string) (map[string]uint32, error), targets []*target, hints backend.Hints) *looker {
	return &looker{servers: servers, sizes: sizes, targets: targets, hints: hints, seed: maphash.MakeSeed(), last: make([]sight, len(targets))}
}

// run polls until the context ends.
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

// look polls once, and sends hints if something has changed since the last poll although the target
// wrote nothing. If the target wrote meanwhile, or a poll failed, only a Read can tell whether
// others wrote as well, so this is a hint too.
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

// sumServers returns a checksum of the target's virtual servers with their real servers.
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

// quiet returns the count of the target's own writes, and whether none is in progress.
func (t *target) quiet() (writes uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writes, t.writing == 0
}
