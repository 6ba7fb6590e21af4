package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Tables returns the names of all tables of the family. A kernel without nf_tables has none.
func (c *Conn) Tables(ctx context.Context) ([]string, error) {
	var names []string
	err := steady(func() error {
		names = nil
		return c.dump(ctx, unix.NFT_MSG_GETTABLE, nil, func(a Attr) error {
			if a.Type == unix.NFTA_TABLE_NAME {
				names = append(names, a.Text())
			}
			return nil
		}, nil)
	})
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return nil, nil // nobody in the kernel takes the message
	case err != nil:
		return nil, fmt.Errorf("list tables of nf_tables: %w", err)
	}
	return names, nil
}
