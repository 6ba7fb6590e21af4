package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// DrainingAt returns the real servers that drain in this node's kernel behind a destination, with their connections. There
// are none where the kernel has no IPVS; no module is loaded.
func DrainingAt(ctx context.Context, proto fwd.Proto, dst netip.AddrPort) (out []hostipvs.RealState, err error) {
	if _, err := os.Stat("/proc/thread-self/net/ip_vs"); err != nil {
		return nil, nil
	}
	k, err := hostipvs.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	reals, err := k.RealServers(ctx, hostipvs.VirtualServer{Protocol: uint8(proto), Addr: dst})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	for _, r := range reals {
		if r.Weight == 0 {
			out = append(out, r)
		}
	}
	return out, nil
}
