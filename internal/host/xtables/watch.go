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

// Watch reports that another process may have changed chains with the prefix in their names, or
// rules that jump to them, in the given tables. It returns at once and watches until the context
// ends. report must not block. In the nft flavour the kernel sends a notification for each
// transaction, and report gets the process, such as "iptables (pid 4711)", if it is known. Legacy
// tables are polled once a second: report is called for each change of the number or size of their
// rules, whatever the rules are. Changes by Restore are not reported. Watch may only be called
// once.
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
	// Only the goroutine of the watch uses table.
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

// writers records our own processes, so that their changes of nf_tables are not reported. The
// address of iptables-nft's netlink socket is its process ID, unless a process in another PID
// namespace already has that address. Then our own write counts as a change by another process,
// which costs an extra read.
type writers struct {
	// mu guards the fields. It is held while a process starts, so that own does not miss a process
	// whose ID is not recorded yet.
	mu sync.Mutex
	// recent is a ring of the last process IDs: a notification may come after the process has
	// ended.
	recent [64]uint32
	next   int
}

// start starts a process and records its ID. w may be nil.
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

// own returns whether a netlink address belongs to one of our processes.
func (w *writers) own(port uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return port != 0 && slices.Contains(w.recent[:], port)
}
