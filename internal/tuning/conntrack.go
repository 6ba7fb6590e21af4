package tuning

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/host/sysctl"
)

// maxScaled limits what MaxPerCore asks for on machines with very many CPUs, as kube-proxy does
// since 1.36. A larger Min still counts.
const maxScaled = 1 << 20

// Change is a parameter that was set.
type Change struct {
	// Name is the path of the parameter, such as "net/netfilter/nf_conntrack_max".
	Name string
	// Value is the new value, Old the previous one.
	Value, Old int
}

// Kernel is where the parameters are. The zero Kernel is this machine's.
type Kernel struct {
	// Sysctl is /proc/sys, and Sys is /sys.
	Sysctl, Sys sysctl.FS
	// CPUs is the number of CPUs that are online; 0 means to ask the kernel.
	CPUs int
}

const (
	tableSize = "net/netfilter/nf_conntrack_max"
	buckets   = "module/nf_conntrack/parameters/hashsize"
)

// Loaded says whether the kernel has connection tracking, and so parameters to set.
func (k Kernel) Loaded() bool {
	_, err := k.Sysctl.Int(tableSize)
	return err == nil
}

// Conntrack sets what the configuration asks for. It returns what it changed, with or without an
// error. The error joins one for each parameter that could not be set.
func (k Kernel) Conntrack(c config.Conntrack) ([]Change, error) {
	s := setter{}
	if want := c.MaxPerCore; want > 0 {
		s.raise(k.Sysctl, tableSize, TableSize(c, k.cpus()), "set conntrack.maxPerCore (--conntrack-max-per-core) to 0 to leave it to the machine")
		// The size that the kernel has now counts, whoever set it.
		if size, err := k.Sysctl.Int(tableSize); err == nil {
			s.raise(k.sys(), buckets, size/4, "lookups in the table are slower with fewer buckets")
		}
	}
	for _, t := range []struct {
		name, field, flag string
		want              time.Duration
	}{
		{"tcp_timeout_established", "tcpEstablishedTimeout", "tcp-timeout-established", c.TCPEstablishedTimeout},
		{"tcp_timeout_close_wait", "tcpCloseWaitTimeout", "tcp-timeout-close-wait", c.TCPCloseWaitTimeout},
		{"udp_timeout", "udpTimeout", "udp-timeout", c.UDPTimeout},
		{"udp_timeout_stream", "udpStreamTimeout", "udp-timeout-stream", c.UDPStreamTimeout},
	} {
		if sec := int(t.want / time.Second); sec > 0 {
			s.set(k.Sysctl, "net/netfilter/nf_conntrack_"+t.name, sec, fmt.Sprintf("set conntrack.%s (--conntrack-%s) to 0 to leave it to the machine", t.field, t.flag))
		}
	}
	if c.TCPBeLiberal {
		s.set(k.Sysctl, "net/netfilter/nf_conntrack_tcp_be_liberal", 1, "set conntrack.tcpBeLiberal (--conntrack-tcp-be-liberal) to false")
	}
	return s.changes, errors.Join(s.errs...)
}

// TableSize returns the number of connections that the table must hold on a machine with that many
// CPUs; 0 leaves it as it is.
func TableSize(c config.Conntrack, cpus int) int {
	if c.MaxPerCore <= 0 {
		return 0
	}
	return max(min(c.MaxPerCore*cpus, maxScaled), c.Min)
}

func (k Kernel) sys() sysctl.FS {
	if k.Sys.Root == "" {
		return sysctl.FS{Root: "/sys"}
	}
	return k.Sys
}

// cpus returns the number of CPUs of the machine that are online, not those that a container may
// use: the table is the machine's.
func (k Kernel) cpus() int {
	if k.CPUs > 0 {
		return k.CPUs
	}
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if n := countCPUs(strings.TrimSpace(string(text))); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countCPUs returns the number of CPUs in a list such as "0-3,8"; 0 if it is malformed.
func countCPUs(list string) int {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			return 0
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil || last < first {
				return 0
			}
		}
		n += last - first + 1
	}
	return n
}

type setter struct {
	changes []Change
	errs    []error
}

// raise sets a value unless it is already that large or larger.
func (s *setter) raise(fs sysctl.FS, name string, want int, hint string) {
	if was, err := fs.Int(name); err == nil && was >= want {
		return
	}
	s.set(fs, name, want, hint)
}

// set sets a value unless it is set already.
func (s *setter) set(in sysctl.FS, name string, want int, hint string) {
	was, err := in.Int(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.errs = append(s.errs, fmt.Errorf("set %s to %d: the kernel has no such parameter, is the module nf_conntrack loaded? (%w)", name, want, err))
		return
	case err != nil:
		s.errs = append(s.errs, fmt.Errorf("set %s to %d: %w; %s", name, want, err, hint))
		return
	case was == want:
		return
	}
	if err := in.Set(name, strconv.Itoa(want)); err != nil {
		s.errs = append(s.errs, fmt.Errorf("set %s to %d (now %d): %w; %s", name, want, was, err, hint))
		return
	}
	s.changes = append(s.changes, Change{Name: name, Value: want, Old: was})
}
