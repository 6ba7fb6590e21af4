package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/instance"
)

// TableName is the name of our table; that of an instance with a name is instance.ID.Table.
const TableName = "fairlead"

// defaultChunk is the maximum number of elements in a transaction that can be split. The kernel
// holds its lock for about 20 ms to write them.
const defaultChunk = 10000

// New returns a Backend on the tables of the families that the map has.
func New(tables map[fwd.Family]nft.Interface, log *slog.Logger) *Backend {
	return newBackend(tables, defaultChunk, log)
}

func newBackend(tables map[fwd.Family]nft.Interface, chunk int, log *slog.Logger) *Backend {
	b := &Backend{Found: new(backend.Found)}
	for _, f := range fwd.Families {
		if t, ok := tables[f]; ok {
			r := newRenderer(f)
			b.Families[f.Index()] = backend.NewEngine(f, r, &target{family: f, table: t, chunk: chunk, renderer: r, found: b.Found, log: log}, sameValue)
		}
	}
	return b
}

// Backend has a Backend for each family.
type Backend struct {
	backend.Families
	// Found has the frontends that an earlier process left in the kernel.
	Found *backend.Found
}

// Plane is a Backend on this node's kernel.
type Plane struct {
	*Backend
	// Drift receives a hint when somebody else changes our table, once Listen was called.
	Drift backend.Hints
	// Listen is to be called after the first write, which it would slow down. If the table exists
	// already, Open calls it. It may be called more than once.
	Listen func()
}

// Open returns a Plane of an instance, with the families, at least one, for which the kernel has
// all features. The error names those that are missing.
func Open(ctx context.Context, log *slog.Logger, id instance.ID) (*Plane, error) {
	table := id.Table()
	tables := make(map[fwd.Family]nft.Interface)
	var conns []*nft.Conn
	var errs []error
	for _, f := range fwd.Families {
		c, err := nft.Open(f, table)
		if err == nil {
			err = c.Usable(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		tables[f] = c
		conns = append(conns, c)
		log.Info("using nf_tables", "family", f.String(), "table", table)
	}
	if len(tables) == 0 {
		return nil, errors.Join(errs...)
	}
	for _, err := range errs {
		log.Warn("address family is disabled", "error", err)
	}
	drift := backend.NewHints()
	p := &Plane{Backend: New(tables, log), Drift: drift, Listen: sync.OnceFunc(func() {
		report := func(f fwd.Family, process string) {
			drift.Send(backend.Drift{Family: f, What: "table " + table, Process: process})
		}
		if err := nft.WatchTable(ctx, table, conns, report, func() {}); err != nil {
			log.Warn("cannot watch the table; changes by others are found by the next verification", "error", err)
		}
	})}
	for _, c := range conns {
		if exists, err := c.Exists(ctx); exists || err != nil {
			p.Listen()
		}
	}
	return p, nil
}
