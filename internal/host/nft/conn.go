package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// sendBuffer is the size of the socket's buffer in bytes. A whole transaction must fit into it.
const sendBuffer = 64 << 20

// MaxTransaction is the maximum size of a transaction in bytes.
const MaxTransaction = sendBuffer / 4

// ErrTooLarge is the error of a transaction that is larger than MaxTransaction; it is not sent.
var ErrTooLarge = errors.New("the transaction is too large")

// Conn is a table in the network namespace in which Open was called. It implements Interface.
// Commit and Read may run concurrently.
type Conn struct {
	family        fwd.Family
	table         string
	writes, reads *netlink.Conn
}

var _ Interface = (*Conn)(nil)

// Open opens sockets for one table of one family. It does not add the table.
func Open(f fwd.Family, table string) (*Conn, error) {
	w, err := netlink.DialSize(unix.NETLINK_NETFILTER, sendBuffer)
	if err != nil {
		return nil, fmt.Errorf("nf_tables: %w", err)
	}
	r, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nf_tables: %w", errors.Join(err, w.Close()))
	}
	return &Conn{family: f, table: table, writes: w, reads: r}, nil
}

// Close closes the sockets; what was written stays.
func (c *Conn) Close() error { return errors.Join(c.writes.Close(), c.reads.Close()) }

// Commit implements Interface.
func (c *Conn) Commit(ctx context.Context, ops []Op) error { return c.transact(ctx, ops, true) }

// Check implements Interface. Kernels before 5.12 do not check the transaction as a whole, for
// example for loops.
func (c *Conn) Check(ctx context.Context, ops []Op) error { return c.transact(ctx, ops, false) }

func (c *Conn) transact(ctx context.Context, ops []Op, commit bool) error {
	if err := ctx.Err(); err != nil || len(ops) == 0 {
		return err
	}
	e := encoder{family: c.family, table: c.table}
	for i := range ops {
		if err := e.op(&ops[i]); err != nil {
			return fmt.Errorf("%v: %w", ops[i], err)
		}
	}
	if size := netlink.Size(e.reqs); size > MaxTransaction {
		return fmt.Errorf("%w: %d bytes, want at most %d", ErrTooLarge, size, MaxTransaction)
	}
	refused, err := c.writes.Transact(ctx, unix.NFNL_SUBSYS_NFTABLES, e.reqs, commit)
	if err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	if refused == nil {
		return nil
	}
	out := &Error{Errno: refused.Err.Errno, Text: refused.Err.Text}
	if i := refused.Index; i >= 0 && i < len(e.origins) {
		o := e.origins[i]
		out.Op, out.Name, out.Elements = o.op.String(), o.op.Name, o.elements
	}
	return out
}
