package nft

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// TestKernelWatch: what others do to the table is heard, what we do ourselves or others do to other tables is not.
func TestKernelWatch(t *testing.T) {
	hosttest.Netns(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	open := func(table string) *Conn {
		c, err := Open(fwd.IPv4, table)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ours, theirs, other := open("fl-test"), open("fl-test"), open("fl-other")
	changed := make(chan struct{}, 1)
	if err := Watch(ctx, changed, "fl-test", ours); err != nil {
		t.Fatal(err)
	}
	commit := func(c *Conn, ops ...Op) {
		t.Helper()
		if err := c.Commit(ctx, ops); err != nil {
			t.Fatal(err)
		}
	}
	commit(ours, Op{Kind: AddTable}, Op{Kind: AddChain, Name: "c"})
	commit(other, Op{Kind: AddTable}, Op{Kind: AddChain, Name: "c"})
	commit(theirs, Op{Kind: AddRules, Name: "c", Rules: []Rule{{Masquerade()}}})
	select {
	case <-changed:
	case <-time.After(hosttest.Patience):
		t.Fatal("a foreign rule in the table is not heard")
	}
	// The signals of one's own and of other tables' transactions would have come before that one.
	commit(ours, Op{Kind: AddChain, Name: "d"})
	commit(other, Op{Kind: DelTable})
	commit(theirs, Op{Kind: DelTable})
	select {
	case <-changed:
	case <-time.After(hosttest.Patience):
		t.Fatal("the removal of the table is not heard")
	}
	cancel()
	select {
	case _, ok := <-changed:
		if ok {
			t.Error("heard something that does not concern the table")
		}
	case <-time.After(hosttest.Patience):
		t.Error("the channel is not closed")
	}
}

func TestConcerns(t *testing.T) {
	w := writer{buf: []byte{2, 0, 0, 0}}
	w.text(1, "fairlead")
	tests := []struct {
		name string
		kind uint16
		body []byte
		want bool
	}{
		{"a rule of the table", 6, w.buf, true},
		{"the end of a transaction", 15, w.buf, false},
		{"cut short", 6, w.buf[:12], false},
		{"nothing", 6, nil, false},
		{"of another subsystem", 6 | 1<<8, w.buf, false},
	}
	for _, tt := range tests {
		if got := concerns(netlink.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 ^ tt.kind, Body: tt.body}, "fairlead"); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if concerns(netlink.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | 6, Body: w.buf}, "fairlea") {
		t.Error("another table's name")
	}
}
