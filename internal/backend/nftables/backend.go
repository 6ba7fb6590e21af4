package nftables

import (
	"context"
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
			b.Families[f.Index()] = b.engine(f, t, chunk, log)
		}
	}
	return b
}

// engine returns the Backend of one family.
func (b *Backend) engine(f fwd.Family, t nft.Interface, chunk int, log *slog.Logger) backend.Backend {
	r := newRenderer(f)
	return backend.NewEngine(f, r, &target{family: f, table: t, chunk: chunk, renderer: r, found: b.Found, log: log}, sameValue)
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
	p := &Plane{Backend: New(nil, log), Drift: backend.NewHints()}
	var conns [2]*nft.Conn
	for _, f := range fwd.Families {
		var err error
		if conns[f.Index()], err = nft.Open(f, table); err != nil {
			return nil, err
		}
	}
	var err error
	p.Families, err = backend.Open(ctx, log, func(ctx context.Context, f fwd.Family) (backend.Backend, error) {
		c := conns[f.Index()]
		if err := c.Usable(ctx); err != nil {
			return nil, err
		}
		log.Info("using nf_tables", "family", f.String(), "table", table)
		return p.engine(f, c, defaultChunk, log), nil
	}, nft.IsTransient)
	if err != nil {
		return nil, err
	}
	p.Listen = sync.OnceFunc(func() {
		report := func(f fwd.Family, process string) {
			p.Drift.Send(backend.Drift{Family: f, What: "table " + table, Process: process})
		}
		if err := nft.WatchTable(ctx, table, conns[:], report, func() {}); err != nil {
			log.Warn("cannot watch the table; changes by others are found by the next verification", "error", err)
		}
	})
	for i, c := range conns {
		if p.Families[i] == nil {
			continue
		}
		if exists, err := c.Exists(ctx); exists || err != nil {
			p.Listen()
		}
	}
	return p, nil
}
