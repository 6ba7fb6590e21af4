package ipvs

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/sysctl"
)

// knob is a kernel parameter that the mode sets.
type knob struct {
	name, value string
	// why is the effect of another value.
	why string
	// must means that nothing works without it, or that the operator requested it.
	must bool
}

// knobs returns the parameters for a kernel.
func knobs(strictARP, before59 bool) []knob {
	k := []knob{
		{"net/ipv4/vs/conntrack", "1", "connections of virtual servers cannot be masqueraded", true},
		{"net/ipv4/ip_forward", "1", "the node forwards nothing to pods", true},
		{"net/ipv4/vs/expire_nodest_conn", "1", "clients of a removed endpoint wait for a timeout instead of getting an error", false},
		{"net/ipv4/vs/expire_quiescent_template", "1", "clients with session affinity stay with a removed endpoint", false},
	}
	if before59 {
		// With another value these kernels delay new connections from a recently used port.
		k = append(k, knob{"net/ipv4/vs/conn_reuse_mode", "0", "some new connections are delayed by a second", false})
	}
	if strictARP {
		k = append(k,
			knob{"net/ipv4/conf/all/arp_ignore", "1", "--ipvs-strict-arp has no effect", true},
			knob{"net/ipv4/conf/all/arp_announce", "2", "--ipvs-strict-arp has no effect", true})
	}
	return k
}

// setSysctls sets the parameters. It fails only if a must cannot be set.
func setSysctls(log *slog.Logger, strictARP bool) error {
	return ensureKnobs(log, sysctl.FS{}, knobs(strictARP, kernelBefore(5, 9)))
}

func ensureKnobs(log *slog.Logger, tree sysctl.FS, wanted []knob) error {
	var errs []error
	for _, k := range wanted {
		changed, err := tree.Ensure(k.name, k.value)
		switch {
		case err == nil && changed:
			log.Info("kernel parameter set", "name", k.name, "value", k.value)
		case err == nil:
		case k.must:
			errs = append(errs, fmt.Errorf("%s must be %s, otherwise %s; set it on the host, or allow this process to write it: %w", k.name, k.value, k.why, err))
		case errors.Is(err, fs.ErrNotExist):
			log.Debug("kernel parameter does not exist", "name", k.name)
		default:
			log.Warn("cannot set kernel parameter", "name", k.name, "wanted", k.value, "effect", k.why, "error", err)
		}
	}
	return errors.Join(errs...)
}

// kernelBefore reports whether the kernel is older than a version; false if unknown.
func kernelBefore(major, minor int) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	return olderThan(unix.ByteSliceToString(u.Release[:]), major, minor)
}

func olderThan(release string, major, minor int) bool {
	a, b, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(b, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		b = b[:end]
	}
	x, err1 := strconv.Atoi(a)
	y, err2 := strconv.Atoi(b)
	return err1 == nil && err2 == nil && (x < major || x == major && y < minor)
}
