package nft

import (
	"context"
	"testing"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
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
	var w writer
	w.text(1, "fairlead")
	message := func(kind byte, pid byte, body []byte) []byte {
		m := []byte{0, 0, 0, 0, kind, 10, 0, 0, 0, 0, 0, 0, pid, 0, 0, 0, 2, 0, 0, 0}
		m = append(m, body...)
		m[0] = byte(len(m))
		return m
	}
	mine := map[uint32]bool{7: true}
	tests := []struct {
		name string
		buf  []byte
		want bool
	}{
		{"a rule of the table", message(6, 9, w.buf), true},
		{"our own", message(6, 7, w.buf), false},
		{"the end of a transaction", message(15, 9, w.buf), false},
		{"second message", append(message(15, 9, nil), message(6, 9, w.buf)...), true},
		{"cut short", message(6, 9, w.buf)[:30], false},
		{"nothing", nil, false},
		{"of no length", make([]byte, 40), false},
	}
	for _, tt := range tests {
		if got := concerns(tt.buf, "fairlead", mine); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if concerns(message(6, 9, w.buf), "fairlea", mine) {
		t.Error("another table's name")
	}
}
