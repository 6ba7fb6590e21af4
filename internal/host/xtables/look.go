package xtables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shape is what the kernel says of a legacy table without listing its rules (struct ipt_getinfo in
// linux/netfilter_ipv4/ip_tables.h; that of IPv6 is the same). Nearly every change of a table changes one of them: a rule that is
// exchanged for one of the same size does not.
type shape struct {
	// entries counts the rules, policies and chain heads; size is what they take in bytes.
	entries, size uint32
	// hooks and underflow are where each built-in chain and its policy begin, in bytes.
	hooks, underflow [5]uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// shapes asks the kernel for the shapes of legacy tables in one network namespace.
type shapes struct {
	// raw is a socket of the kind that iptables asks with.
	raw   int
	level int
	// names is the list of tables that there are: the kernel would make a table that it is asked for.
	names *os.File
}

// openShapes opens it for the network namespace of the calling thread. It is nil where the kernel has no legacy tables.
func openShapes(ipv6 bool) (*shapes, error) {
	s := &shapes{level: unix.IPPROTO_IP}
	domain, path := unix.AF_INET, "/proc/thread-self/net/ip_tables_names"
	if ipv6 {
		s.level, domain, path = unix.IPPROTO_IPV6, unix.AF_INET6, "/proc/thread-self/net/ip6_tables_names"
	}
	var err error
	if s.names, err = os.Open(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	if s.raw, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		return nil, errors.Join(fmt.Errorf("raw socket to look at iptables' tables: %w", err), s.names.Close())
	}
	return s, nil
}

// Close closes what it asks with.
func (s *shapes) Close() error { return errors.Join(s.names.Close(), unix.Close(s.raw)) }

// of returns the shapes of those of the tables that the kernel has.
func (s *shapes) of(tables []string) (map[string]shape, error) {
	if _, err := s.names.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	list, err := io.ReadAll(s.names)
	if err != nil {
		return nil, err
	}
	have := strings.Fields(string(list))
	out := make(map[string]shape)
	for _, table := range tables {
		if !slices.Contains(have, table) {
			continue
		}
		if out[table], err = s.table(table); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *shapes) table(name string) (shape, error) {
	// name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
	var buf [32 + 4 + 5*4 + 5*4 + 4 + 4]byte
	copy(buf[:31], name)
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.raw), uintptr(s.level), getInfo,
		uintptr(unsafe.Pointer(&buf)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return shape{}, fmt.Errorf("look at table %s: %w", name, errno)
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(buf[32+4*i:]) }
	var out shape
	for i := range 5 {
		out.hooks[i], out.underflow[i] = word(1+i), word(6+i)
	}
	out.entries, out.size = word(11), word(12)
	return out, nil
}

// lookEvery is the time between two looks at legacy tables. A look takes some microseconds for each table.
const lookEvery = time.Second

// looker notices changes that others make to legacy tables by the shapes of these: the kernel tells nobody.
type looker struct {
	watched []string
	// report is called with a table that others have changed. It must not wait.
	report func(table string)

	// mu guards what follows, and keeps looks apart from our own writes.
	mu sync.Mutex
	// kernel is what to ask; nil when the watch has ended.
	kernel shaper
	// known is what the last look saw, or our last write left. After a look that failed it is empty, so that every table counts as
	// changed by the next one: what happened in between is not known.
	known map[string]shape
}

// shaper is implemented by shapes.
type shaper interface {
	of(tables []string) (map[string]shape, error)
	io.Closer
}

// run looks until the context ends.
func (l *looker) run(ctx context.Context) {
	defer l.end()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.around(func() {})
		}
	}
}

func (l *looker) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.kernel.Close() // it was only read from
	l.kernel = nil
}

// around carries out one of our own writes: what others did before it is reported, what it does itself is not.
func (l *looker) around(write func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.known
	now := l.look()
	for _, table := range l.watched {
		if now != nil && before[table] != now[table] {
			l.report(table)
		}
	}
	write()
	l.look()
}

// look brings known up to date and returns it, nil if that fails.
func (l *looker) look() map[string]shape {
	if l.kernel == nil {
		return nil
	}
	now, err := l.kernel.of(l.watched)
	if err != nil {
		l.known = nil
		return nil
	}
	l.known = now
	return now
}
