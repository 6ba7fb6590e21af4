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

// A connection-tracking entry that was made before its virtual server leads past it: packets of the flow are not rewritten
// as those of IPVS are, or answers leave with a wrong port. So entries to the destinations of new virtual servers are
// removed, whatever the protocol, and those of UDP when the first real server comes. The next packet makes a new one.
//
// An entry of which the answers come from elsewhere than where the packets went stays: its connection was made through the
// virtual server since, or by the rules of another mode before, and would be broken. When a virtual server of UDP goes, all
// of its entries go.

const (
	// fewDestinations is up to how many destinations the kernel is asked for each by itself.
	fewDestinations = 8
	// staleBatch is how many entries are collected before they are deleted.
	staleBatch = 500
	// What failed is tried again after firstRetry, then after twice as long each time, up to maxRetry.
	firstRetry = time.Second
	maxRetry   = time.Minute
)

// sweeper removes entries in a goroutine of its own, since the table may be large.
type sweeper struct {
	table conntrack.Table
	log   *slog.Logger
	wake  chan struct{}

	// mu guards pending, which says for each destination whether its virtual server is gone.
	mu      sync.Mutex
	pending map[destinations]map[netip.AddrPort]bool
}

// destinations are those that one dump of the table finds.
type destinations struct {
	ipv6  bool
	proto fwd.Proto
}

func newSweeper(table conntrack.Table, log *slog.Logger) *sweeper {
	return &sweeper{table: table, log: log, wake: make(chan struct{}, 1), pending: make(map[destinations]map[netip.AddrPort]bool)}
}

// submit asks for the removal of entries to destinations. It does not wait.
func (s *sweeper) submit(proto fwd.Proto, dst []netip.AddrPort, gone bool) {
	for _, d := range dst {
		s.add(destinations{d.Addr().Is6(), proto}, map[netip.AddrPort]bool{d: gone})
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// add adds to what is pending.
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

// run works until the context ends. What fails it tries again by itself.
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
				s.log.Warn("cannot remove all flows from before their virtual server, trying again", append(attrs, "after", wait, "error", err)...)
			case n > 0:
				s.log.Info("removed flows from before their virtual server", attrs...)
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
