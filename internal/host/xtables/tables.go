package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// Interface reads and writes the tables of one family. Tables and rulesim.Tables implement it.
type Interface interface {
	// Read returns one table, or nil if the kernel does not have it. Restore creates it.
	Read(ctx context.Context, table string) (Table, error)
	// Restore executes input in the format of iptables-restore --noflush. An error caused by the
	// input or the state of the tables is a *RestoreError.
	Restore(ctx context.Context, input []byte) error
}

// Tables are the tables of one family in this network namespace, for one flavour. It is safe for
// concurrent use: the kernel and the xtables lock serialise writers.
type Tables struct {
	flavour             Flavour
	main, save, restore string // paths
	info                *iptables.IPTables
	// writers are the processes of Restore. looker is set while legacy tables are watched.
	writers writers
	looker  atomic.Pointer[looker]
}

// ErrNotFound means that a program of a flavour is not installed.
var ErrNotFound = exec.ErrNotFound

// New finds the programs of a flavour for one family. The error is ErrNotFound if one of them is
// missing.
func New(flavour Flavour, ipv6 bool) (*Tables, error) {
	t := &Tables{flavour: flavour}
	for suffix, path := range map[string]*string{"": &t.main, "save": &t.save, "restore": &t.restore} {
		p, err := exec.LookPath(flavour.command(ipv6, suffix))
		if err != nil {
			return nil, fmt.Errorf("find iptables: %w", err)
		}
		*path = p
	}
	family := iptables.ProtocolIPv4
	if ipv6 {
		family = iptables.ProtocolIPv6
	}
	info, err := iptables.New(iptables.Path(t.main), iptables.IPFamily(family))
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", t.main, err)
	}
	t.info = info
	// iptables-restore can wait for the lock since 1.6.2. An older one could lose rules of other
	// programs.
	if major, minor, patch := info.GetIptablesVersion(); major*10000+minor*100+patch < 10602 {
		return nil, fmt.Errorf("%s is version %s: want at least 1.6.2", t.main, t.Version())
	}
	return t, nil
}

func (t *Tables) ipv6() bool { return t.info.Proto() == iptables.ProtocolIPv6 }

// Flavour returns the flavour.
func (t *Tables) Flavour() Flavour { return t.flavour }

// Version returns the version of the userland, like "1.8.9".
func (t *Tables) Version() string {
	major, minor, patch := t.info.GetIptablesVersion()
	return fmt.Sprintf("%d.%d.%d", major, minor, patch)
}

// RandomFully returns whether the userland supports --random-fully for MASQUERADE and SNAT.
func (t *Tables) RandomFully() bool { return t.info.HasRandomFully() }

// Read runs iptables-save for one table. It does not if the kernel does not have the table, because
// iptables-save would create it in the legacy flavour. The output, which can be large, is parsed as
// a stream.
func (t *Tables) Read(ctx context.Context, table string) (Table, error) {
	if !t.exists(table) {
		return nil, nil
	}
	from, to := io.Pipe()
	var parsed Table
	var perr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		parsed, perr = ParseTable(from, table)
		from.CloseWithError(perr) // a broken pipe ends the child
	}()
	err := run(ctx, nil, to, t.save, "-t", table).err()
	to.Close()
	<-done
	switch {
	case err == nil:
		err = perr
	case perr != nil && !errors.Is(perr, ErrTruncated): // it broke the pipe
		err = fmt.Errorf("%w (%w)", perr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", table, err)
	}
	return parsed, nil
}

// exists returns whether the kernel has the table for this flavour.
func (t *Tables) exists(table string) bool {
	if t.flavour == NFT {
		return true
	}
	names := "/proc/thread-self/net/ip_tables_names"
	if t.ipv6() {
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	list, err := os.ReadFile(names)
	// Without the file the kernel has no legacy tables at all. If it cannot be read, assume the
	// table exists.
	return err == nil && slices.Contains(strings.Fields(string(list)), table) || err != nil && !errors.Is(err, os.ErrNotExist) ||
		t.flavour == Plain
}

// Restore runs iptables-restore --noflush once. It waits up to 5 seconds for the lock. The end of
// the context kills the child, which leaves each table either written or not.
func (t *Tables) Restore(ctx context.Context, input []byte) error {
	var res result
	write := func() {
		res = runRecorded(ctx, &t.writers, bytes.NewReader(input), nil, t.restore, "--noflush", "--wait=5")
	}
	if l := t.looker.Load(); l != nil {
		l.around(write)
	} else {
		write()
	}
	if res.cause == nil {
		return nil
	}
	return newRestoreError(res, input)
}

// Rules lists the rules of one chain, each the text after "-A CHAIN ". It returns nil if there is
// no such chain or it cannot be read. For a large table it is cheaper than Read.
func (t *Tables) Rules(ctx context.Context, table, chain string) []string {
	out := &limited{max: maxSave, fail: true}
	if run(ctx, nil, out, t.main, "--wait", "5", "-t", table, "-S", chain).cause != nil {
		return nil
	}
	rules := []string{}
	for line := range strings.Lines(out.buf.String()) {
		if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "+chain+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules
}

// ErrPermission means that the process may not use iptables.
var ErrPermission = errors.New("iptables is not permitted: need root or CAP_NET_ADMIN")

// errTransient means that a program failed for a reason that may pass, such as a lock that another
// program holds.
var errTransient = errors.New("may succeed later")

// IsTransient reports whether an error of Usable or Restore may pass by itself.
func IsTransient(err error) bool {
	var re *RestoreError
	return errors.Is(err, errTransient) || errors.As(err, &re) && re.Transient
}

// Usable retries after transient errors, such as a lock that another program holds, because it is
// only called at startup.
const (
	usableTries = 4
	usablePause = time.Second
)

// Usable returns an error if the tables cannot be used: ErrPermission if the process lacks the
// permission.
func (t *Tables) Usable(ctx context.Context) error {
	var res result
	for try := 1; ; try++ {
		res = run(ctx, nil, nil, t.main, "--wait", "5", "-t", "nat", "-S", "POSTROUTING")
		if res.cause == nil || !res.transient() || try == usableTries {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("list nat POSTROUTING: %w", ctx.Err())
		case <-time.After(usablePause):
		}
	}
	switch {
	case res.cause == nil:
		return nil
	case res.transient():
		return fmt.Errorf("list nat POSTROUTING: %w: %w", errTransient, res.err())
	case strings.Contains(res.stderr, "Permission denied"), strings.Contains(res.stderr, "Operation not permitted"),
		strings.Contains(res.stderr, "you must be root"):
		return fmt.Errorf("%w (%w)", ErrPermission, res.err())
	case strings.Contains(res.stderr, "Table does not exist"), strings.Contains(res.stderr, "not supported"):
		return fmt.Errorf("the kernel has no table nat for this flavour (modules iptable_nat, ip6table_nat or nft_compat): %w", res.err())
	}
	return fmt.Errorf("list nat POSTROUTING: %w", res.err())
}

// RestoreError is a restore that failed.
type RestoreError struct {
	// Line is the number of the input line that failed, from 1, or 0 if it is not known. If
	// LineText is COMMIT, the whole table was refused, and the faulty line is not known: legacy
	// reports everything that the kernel refuses in this way, nft a jump to a missing chain.
	Line     int
	LineText string
	// Stderr is what the program printed, at most 64 KiB.
	Stderr string
	// Transient means that the same input may succeed later: the lock was held, memory was short,
	// or the child was killed. Otherwise the input is refused.
	Transient bool
	// Err is how the program ended.
	Err error
}

func (e *RestoreError) Error() string {
	s := "iptables-restore"
	if e.Line > 0 {
		s += fmt.Sprintf(" at line %d (%s)", e.Line, e.LineText)
	}
	return fmt.Sprintf("%s: %v: %s", s, e.Err, e.Stderr)
}

// Unwrap returns how the program ended.
func (e *RestoreError) Unwrap() error { return e.Err }

// failedLine matches the line number in the messages of both flavours: "Error occurred at line: 3",
// "iptables-restore: line 7 failed", "COMMIT expected at line 3", "line 6: RULE_APPEND failed (Too
// many links)".
var failedLine = regexp.MustCompile(`(?m)(?:at line: |at line |line )(\d+)(?:$| failed|: \w+ failed)`)

func newRestoreError(res result, input []byte) *RestoreError {
	e := &RestoreError{Stderr: res.stderr, Transient: res.transient(), Err: fmt.Errorf("%s: %w", res.path, res.cause)}
	m := failedLine.FindStringSubmatch(res.stderr)
	if m == nil {
		return e
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return e
	}
	if text, ok := lineAt(input, n); ok {
		e.Line, e.LineText = n, text
	}
	return e
}

// lineAt returns a line of the input, counted from 1.
func lineAt(input []byte, n int) (string, bool) {
	for i := 1; ; i++ {
		line, rest, more := bytes.Cut(input, []byte("\n"))
		if i == n {
			return string(line), true
		}
		if !more {
			return "", false
		}
		input = rest
	}
}
