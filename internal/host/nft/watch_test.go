package nft

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// TestKernelWatch: changes of the table by others are reported; our own, and those of other tables,
// are not.
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
	type report struct {
		family  fwd.Family
		process string
	}
	changed := make(chan report, 10)
	if err := WatchTable(ctx, "fl-test", []*Conn{ours}, func(f fwd.Family, process string) { changed <- report{f, process} }, func() { close(changed) }); err != nil {
		t.Fatal(err)
	}
	us := report{fwd.IPv4, fmt.Sprintf("%s (pid %d)", programName(t), unix.Gettid())}
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
	case got := <-changed:
		if got != us {
			t.Errorf("reported %v, want %v", got, us)
		}
	case <-time.After(hosttest.Patience):
		t.Fatal("a rule that somebody else added is not reported")
	}
	// Reports of our own transactions and of those on other tables would have come before this one.
	commit(ours, Op{Kind: AddChain, Name: "d"})
	commit(other, Op{Kind: DelTable})
	commit(theirs, Op{Kind: DelTable})
	select {
	case <-changed:
	case <-time.After(hosttest.Patience):
		t.Fatal("the deletion of the table is not reported")
	}
	cancel()
	select {
	case _, ok := <-changed:
		if ok {
			t.Error("something that does not concern the table is reported")
		}
	case <-time.After(hosttest.Patience):
		t.Error("the channel is not closed")
	}
}

// programName returns the name that the kernel has for this program.
func programName(t *testing.T) string {
	t.Helper()
	comm, err := os.ReadFile("/proc/thread-self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(comm))
}

func TestWatchTransactions(t *testing.T) {
	body := func(family byte, table string) []byte {
		return netlink.AppendText(netlink.NetfilterHeader(family), unix.NFTA_TABLE_NAME, table)
	}
	message := func(kind uint16, body []byte) netlink.Message {
		return netlink.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | kind, Body: body}
	}
	rule := func(family byte, table string) netlink.Message {
		return message(unix.NFT_MSG_NEWRULE, body(family, table))
	}
	gen := netlink.AppendNet32(netlink.NetfilterHeader(unix.NFPROTO_UNSPEC), 2, 4321)
	end := message(unix.NFT_MSG_NEWGEN, netlink.AppendText(gen, 3, "nft"))
	tests := []struct {
		name string
		in   []netlink.Message
		want []string
	}{
		{"two rules of the table", []netlink.Message{rule(2, "fairlead"), rule(2, "fairlead"), end}, []string{"IPv4 nft (pid 4321)"}},
		{"both families", []netlink.Message{rule(10, "fairlead"), rule(2, "fairlead"), end}, []string{"IPv4 nft (pid 4321)", "IPv6 nft (pid 4321)"}},
		{"a family that is neither", []netlink.Message{rule(unix.NFPROTO_INET, "fairlead"), end}, nil},
		{"another table", []netlink.Message{rule(2, "fairlea"), end}, nil},
		{"a transaction that has not ended", []netlink.Message{rule(2, "fairlead")}, nil},
		{"a transaction each", []netlink.Message{end, rule(2, "fairlead"), end, end}, []string{"IPv4 nft (pid 4321)"}},
		{"a commit by nobody", []netlink.Message{rule(2, "fairlead"), message(unix.NFT_MSG_NEWGEN, []byte{0, 0, 0, 0})}, []string{"IPv4 "}},
		{"cut short", []netlink.Message{message(unix.NFT_MSG_NEWRULE, body(2, "fairlead")[:10]), message(unix.NFT_MSG_NEWRULE, nil), message(unix.NFT_MSG_NEWGEN, nil), end}, nil},
		{"another subsystem", []netlink.Message{{Type: 1<<8 | unix.NFT_MSG_NEWRULE, Body: body(2, "fairlead")}, end}, nil},
	}
	for _, tt := range tests {
		var got []string
		w := &watch{
			foreign: func(c Change) bool { return c.Table == "fairlead" },
			report:  func(f fwd.Family, process string) { got = append(got, f.String()+" "+process) },
		}
		w.messages(tt.in)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}
