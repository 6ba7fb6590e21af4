package localport

import "github.com/fairlead/fairlead/internal/fwd"

// Lookup returns what happens to the first packet of a connection that the forwarder serves, with
// its Options.Families. ok is false for any other packet. A node port without a target has no
// listener, so that the host itself refuses the connection.
func Lookup(t *fwd.Table, families [2]bool, p fwd.Packet) (out fwd.Outcome, ok bool) {
	dst := p.Dst.Addr()
	fam := fwd.FamilyOf(dst)
	key := fwd.Key{Family: fam, Proto: p.Proto, Port: p.Dst.Port()}
	if !families[fam.Index()] || dst != loopback[fam.Index()] || !p.Src.IsLoopback() || !isLocalPort(key) {
		return out, false
	}
	fe := t.Frontend(key)
	if fe == nil {
		return out, false
	}
	out = fwd.Outcome{Verdict: fwd.VerdictReject, Class: fwd.Host, Key: key, Owner: fe.Owner, Reason: fwd.ReasonLocalPort}
	if to := targetOf(t.Fragment(fe.Owner.Service), fe); !to.empty() {
		// The connection to the endpoint comes from the daemon itself.
		out.Verdict, out.Masquerade = fwd.VerdictForward, true
		out.Endpoints, out.AffinitySec = to.endpoints, uint32(to.affinity.Seconds())
	}
	return out, true
}
