package ipvs

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
)

// Packets of a connection tracking entry that is older than its virtual server bypass IPVS, or
// replies have a wrong port. So entries to the destinations of new virtual servers are removed for
// all protocols, and those of UDP when the first real server is added. The next packet creates a
// new entry.
//
// An entry whose replies come from another address than its destination stays: its connection was
// made through the virtual server, or by the rules of another mode, and would break. When a virtual
// server of UDP is deleted, all of its entries are removed.

const (
	// fewDestinations is the maximum number of destinations for which one dump each is used instead
	// of one for all.
	fewDestinations = 8
	// staleBatch is the number of entries that are deleted together.
	staleBatch = 500
	// Failures are retried after firstRetry, then after intervals that double up to maxRetry.
	firstRetry = time.Second
	maxRetry   = time.Minute
)

// sweeper removes entries in its own goroutine, because the table may be large.
type sweeper struct {
	table conntrack.Table
	log   *slog.Logger
	wake  chan struct{}

	// mu guards pending, which has for each destination whether its virtual server was deleted.
	mu      sync.Mutex
	pending map[destinations]map[netip.AddrPort]bool
}

// destinations are the destinations that one dump covers.
type destinations struct {
	ipv6  bool
	proto fwd.Proto
}

func newSweeper(table conntrack.Table, log *slog.Logger) *sweeper {
	return &sweeper{table: table, log: log, wake: make(chan struct{}, 1), pending: make(map[destinations]map[netip.AddrPort]bool)}
}

// submit requests the removal of entries to destinations. It does not block.
func (s *sweeper) submit(proto fwd.Proto, dst []netip.AddrPort, gone bool) {
	for _, d := range dst {
		s.add(destinations{d.Addr().Is6(), proto}, map[netip.AddrPort]bool{d: gone})
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// add adds destinations to pending.
func (s *sweeper) add(k destinations, dst map[netip.AddrPort]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[k] == nil {
		s.pending[k] = make(map[netip.AddrPort]bool)
	}
	for d, gone := range dst {
		s.pending[k][d] = s.pending[k][d] || gone
	}
}

// run works until the context ends, and retries failures.
func (s *sweeper) run(ctx context.Context) {
	var retry <-chan time.Time
	wait := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-retry:
		}
		failed := false
		s.mu.Lock()
		work := s.pending
		s.pending = make(map[destinations]map[netip.AddrPort]bool)
		s.mu.Unlock()
		for k, dst := range work {
			start := time.Now()
			n, err := s.sweep(ctx, k, dst)
			attrs := []any{"protocol", k.proto.String(), "ipv6", k.ipv6, "destinations", len(dst), "removed", n, "duration", time.Since(start)}
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				failed = true
				s.add(k, dst)
				s.log.Warn("cannot remove all flows older than their virtual server, will retry", append(attrs, "after", wait, "error", err)...)
			case n > 0:
				s.log.Info("removed flows older than their virtual server", attrs...)
			}
		}
		retry = nil
		if failed {
			retry = time.After(wait)
			wait = min(2*wait, maxRetry)
		} else {
			wait = firstRetry
		}
	}
}

// sweep removes the entries to destinations of one family and protocol.
func (s *sweeper) sweep(ctx context.Context, k destinations, dst map[netip.AddrPort]bool) (removed int, err error) {
	var batch []conntrack.Flow
	var errs []error
	remove := func() {
		n, err := s.table.Delete(ctx, batch)
		removed += n
		errs = append(errs, err)
		batch = batch[:0]
	}
	collect := func(f conntrack.Flow) bool {
		if gone, ok := dst[f.OrigDst]; ok && (gone || f.ReplySrc == f.OrigDst) {
			if batch = append(batch, f); len(batch) == staleBatch {
				remove()
			}
		}
		return true
	}
	queries := []conntrack.Query{{IPv6: k.ipv6, Proto: uint8(k.proto)}}
	if len(dst) <= fewDestinations {
		queries = nil
		for _, d := range slices.SortedFunc(maps.Keys(dst), netip.AddrPort.Compare) {
			queries = append(queries, conntrack.Query{IPv6: k.ipv6, Proto: uint8(k.proto), Dst: d})
		}
	}
	for _, q := range queries {
		_, err := s.table.Dump(ctx, q, collect)
		errs = append(errs, err)
	}
	if len(batch) > 0 {
		remove()
	}
	return removed, errors.Join(errs...)
}
