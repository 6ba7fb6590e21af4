package nftables

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// Remove takes our table of one family out of the kernel, with everything in it, in one transaction. It says whether there
// is one; with dryRun it does no more. A kernel without nf_tables has none.
func Remove(ctx context.Context, f fwd.Family, dryRun bool) (there bool, err error) {
	c, err := nft.Open(f, TableName)
	if err != nil {
		return false, fmt.Errorf("open nf_tables, %s: %w", f, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	there, err = c.Exists(ctx)
	if err != nil || !there || dryRun {
		return there, err
	}
	if err := c.Commit(ctx, []nft.Op{{Kind: nft.DelTable}}); err != nil {
		return true, fmt.Errorf("delete table %s, %s: %w", TableName, f, err)
	}
	return true, nil
}
