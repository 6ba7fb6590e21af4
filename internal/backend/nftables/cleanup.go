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

// Leftovers returns the instances that have a table of one family, sorted. A kernel without nf_tables has none.
func Leftovers(ctx context.Context, f fwd.Family) (ids []instance.ID, err error) {
	c, err := nft.Open(f, TableName)
	if err != nil {
		return nil, fmt.Errorf("open nf_tables, %s: %w", f, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	names, err := c.Tables(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for our tables, %s: %w", f, err)
	}
	for _, name := range names {
		if id, ok := instance.OfTable(name); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Remove takes an instance's table of one family out of the kernel, with everything in it, in one transaction. It says whether
// there was one. A kernel without nf_tables has none.
func Remove(ctx context.Context, f fwd.Family, id instance.ID) (there bool, err error) {
	c, err := nft.Open(f, id.Table())
	if err != nil {
		return false, fmt.Errorf("open nf_tables, %s: %w", f, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	there, err = c.Exists(ctx)
	if err != nil || !there {
		return there, err
	}
	// A packet that is in the rules at the moment of a commit goes on with the old ones, but finds the maps empty already, and would be
	// refused as one to a port that no Service has. So nothing comes to the rules any more when the table goes. A table that
	// lacks one of these chains has nothing to lead there.
	if err := c.Commit(ctx, []nft.Op{{Kind: nft.FlushChain, Name: chainPrerouting}, {Kind: nft.FlushChain, Name: chainOutput}}); err != nil && !errors.Is(err, unix.ENOENT) {
		return true, fmt.Errorf("take table %s out of use, %s: %w", id.Table(), f, err)
	}
	if err := c.Commit(ctx, []nft.Op{{Kind: nft.DelTable}}); err != nil {
		return true, fmt.Errorf("delete table %s, %s: %w", id.Table(), f, err)
	}
	return true, nil
}
