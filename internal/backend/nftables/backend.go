package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// TableName is the name of our table, in the families ip and ip6.
const TableName = "fairlead"

// defaultChunk is how many elements a transaction writes at most, where it can be split. The kernel holds its lock for
// about 20 ms for so many.
const defaultChunk = 10000

// New returns a Backend on the tables of the families that the map names. chunk bounds the elements of one transaction; 0
// stands for what is good for the kernel.
func New(tables map[fwd.Family]nft.Interface, chunk int) backend.Backend {
	if chunk == 0 {
		chunk = defaultChunk
	}
	var families []backend.Backend
	for _, f := range fwd.Families {
		if t, ok := tables[f]; ok {
			r := newRenderer(f)
			families = append(families, backend.NewEngine(f, r, &target{f, t, chunk, r}, sameValue))
		}
	}
	return backend.Join(families...)
}

// Open returns a Backend on the kernel of this node, for the families in which it has nf_tables; at least one. The channel
// receives when somebody else has changed a table of ours; it is closed when the context ends. The error says what is
// missing.
func Open(ctx context.Context, log *slog.Logger) (backend.Backend, <-chan struct{}, error) {
	tables := make(map[fwd.Family]nft.Interface)
	var conns []*nft.Conn
	var errs []error
	for _, f := range fwd.Families {
		c, err := nft.Open(f, TableName)
		if err == nil {
			err = c.Usable(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		tables[f] = c
		conns = append(conns, c)
		log.Info("using nf_tables", "family", f.String(), "table", TableName)
	}
	if len(tables) == 0 {
		return nil, nil, errors.Join(errs...)
	}
	for _, err := range errs {
		log.Warn("one address family is left out", "error", err)
	}
	changed, err := nft.Watch(ctx, TableName, conns...)
	if err != nil {
		return nil, nil, err
	}
	return New(tables, 0), changed, nil
}
