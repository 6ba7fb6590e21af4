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

// shape is what the kernel returns about a legacy table without listing its rules (struct
// ipt_getinfo in linux/netfilter_ipv4/ip_tables.h; IPv6 has the same). Nearly every change of a
// table changes its shape, but replacing a rule by one of the same size does not.
type shape struct {
	// entries counts the rules, policies and chain heads; size is their size in bytes.
	entries, size uint32
	// hooks and underflow are the byte offsets of each built-in chain and its policy.
	hooks, underflow [5]uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// shapes reads the shapes of legacy tables in one network namespace.
type shapes struct {
	// raw is a raw socket, as iptables uses.
	raw   int
	level int
	// names is the file that lists the existing tables: the kernel would create a table on request.
	names *os.File
}

// openShapes opens shapes for the network namespace of the calling thread. It returns nil if the
// kernel has no legacy tables.
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
		return nil, errors.Join(fmt.Errorf("open raw socket to read the shapes of iptables tables: %w", err), s.names.Close())
	}
	return s, nil
}

// Close closes the socket and the file.
func (s *shapes) Close() error { return errors.Join(s.names.Close(), unix.Close(s.raw)) }

// of returns the shapes of the given tables that exist.
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
		return shape{}, fmt.Errorf("read shape of table %s: %w", name, errno)
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(buf[32+4*i:]) }
	var out shape
	for i := range 5 {
		out.hooks[i], out.underflow[i] = word(1+i), word(6+i)
	}
	out.entries, out.size = word(11), word(12)
	return out, nil
}

// lookEvery is the polling interval for legacy tables. A look takes some microseconds per table.
const lookEvery = time.Second

// looker detects changes of legacy tables by other processes from the shapes: the kernel sends no
// notifications.
type looker struct {
	watched []string
	// report is called with a table that another process has changed. It must not block.
	report func(table string)

	// mu guards the following fields, and is held during our own writes.
	mu sync.Mutex
	// kernel reads the shapes; nil when the watch has ended.
	kernel shaper
	// known are the shapes at the last look, or after our last write. After a failed look it is
	// empty, so that every table counts as changed at the next look: changes in between are not
	// known.
	known map[string]shape
}

// shaper is implemented by shapes.
type shaper interface {
	of(tables []string) (map[string]shape, error)
	io.Closer
}

// run polls until the context ends.
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
	_ = l.kernel.Close() // it was only used for reading
	l.kernel = nil
}

// around runs one of our own writes. It reports changes that others made before it, but not the
// write itself.
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

// look updates known and returns it, or nil if that fails.
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
