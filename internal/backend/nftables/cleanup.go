package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/instance"
)

// Leftovers returns the instances that have a table of the family, sorted. A kernel without
// nf_tables has none.
func Leftovers(ctx context.Context, f fwd.Family) (ids []instance.ID, err error) {
	c, err := nft.Open(f, TableName)
	if err != nil {
		return nil, fmt.Errorf("open nf_tables, %s: %w", f, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	names, err := c.Tables(ctx)
	if err != nil {
		return nil, fmt.Errorf("find tables of Fairlead, %s: %w", f, err)
	}
	for _, name := range names {
		if id, ok := instance.OfTable(name); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Remove deletes an instance's table of one family and reports whether it existed. A kernel without
// nf_tables has none.
func Remove(ctx context.Context, f fwd.Family, id instance.ID) (existed bool, err error) {
	c, err := nft.Open(f, id.Table())
	if err != nil {
		return false, fmt.Errorf("open nf_tables, %s: %w", f, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	existed, err = c.Exists(ctx)
	if err != nil || !existed {
		return existed, err
	}
	// A packet that is in the rules during a commit continues with the old rules, but finds the
	// maps empty already, and would be rejected like one to a port without a Service. So first
	// packets are kept from the rules. A table without one of these chains has nothing that leads
	// to the rules.
	if err := c.Commit(ctx, []nft.Op{{Kind: nft.FlushChain, Name: chainPrerouting}, {Kind: nft.FlushChain, Name: chainOutput}}); err != nil && !errors.Is(err, unix.ENOENT) {
		return true, fmt.Errorf("disconnect table %s, %s: %w", id.Table(), f, err)
	}
	if err := c.Commit(ctx, []nft.Op{{Kind: nft.DelTable}}); err != nil {
		return true, fmt.Errorf("delete table %s, %s: %w", id.Table(), f, err)
	}
	return true, nil
}
