package xtables

import (
	"bytes"
	"context"
	"os/exec"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// Watch reports, from when it returns until the context ends, that somebody else may have changed, in the named tables,
// chains whose names begin with prefix, or rules that lead to them. report must not wait. It gets the process that did it, such
// as "iptables (pid 4711)", where the kernel tells: that is so in the nft flavour, where it tells of each transaction. Legacy
// tables are looked at once a second; report is called for each change of them that alters their number of rules or their
// size, whoever's rules they are. What Restore does is left out. Watch is called once.
func (t *Tables) Watch(ctx context.Context, tables []string, prefix string, report func(table, process string)) error {
	if t.flavour != NFT {
		s, err := openShapes(t.ipv6())
		if err != nil {
			return err
		}
		if s != nil {
			l := &looker{kernel: s, watched: tables, report: func(table string) { report(table, "") }}
			l.look()
			t.looker.Store(l)
			go l.run(ctx)
		}
	}
	if t.flavour == Legacy {
		return nil
	}
	family := fwd.IPv4
	if t.ipv6() {
		family = fwd.IPv6
	}
	// Only the watch's goroutine uses table.
	table := ""
	return nft.Watch(ctx, func(c nft.Change) bool {
		if c.Family != family || !slices.Contains(tables, c.Table) || t.writers.own(c.Message.Port) {
			return false
		}
		if c.Kind != unix.NFT_MSG_DELTABLE && !bytes.Contains(c.Message.Body, []byte(prefix)) {
			return false
		}
		table = c.Table
		return true
	}, func(f fwd.Family, process string) {
		if f == family {
			report(table, process)
		}
	}, func() {})
}

// writers remembers which processes are ours, so that what they do to nf_tables is not taken for others' work: the address
// of iptables-nft's netlink socket is its process ID, unless a process of another PID namespace has that address already.
// Then our own write counts as another's, which costs a reading.
type writers struct {
	// mu guards the fields. It is held while a process starts, so that nobody asks for one whose ID is not known yet.
	mu sync.Mutex
	// recent are the last process IDs, in a ring: what a process did may be told after it has ended.
	recent [64]uint32
	next   int
}

// start starts a process and notes its ID. w may be nil.
func (w *writers) start(cmd *exec.Cmd) error {
	if w == nil {
		return cmd.Start()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	err := cmd.Start()
	if err == nil {
		w.recent[w.next%len(w.recent)] = uint32(cmd.Process.Pid)
		w.next++
	}
	return err
}

// own says whether a netlink address is that of one of our processes.
func (w *writers) own(port uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return port != 0 && slices.Contains(w.recent[:], port)
}
