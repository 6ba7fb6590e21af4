package ipvs

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// The tables of iptables.
const (
	tableMangle = "mangle"
	tableNAT    = "nat"
	tableFilter = "filter"
)

// chainPrefix begins the name of every chain that is ours; in built-in chains only rules that lead to these are ours. The chains and
// sets of an instance with a name begin otherwise in the kernel (names), with as many bytes.
const chainPrefix = "FAIRLEAD-"

// names translates between the names in this package and those of an instance in the kernel.
func names(id instance.ID) xtables.Exchange { return xtables.NewExchange(chainPrefix, id.Prefix()) }

// The chains. What jumps to them from the built-in chains is in static.go.
const (
	chainDivert      = chainPrefix + "DIVERT"       // mangle: what is for a frontend gets the mark of VIPMark
	chainGuard       = chainPrefix + "GUARD"        // mangle: source ranges and routes that drop
	chainServices    = chainPrefix + "SERVICES"     // nat: which of the next three
	chainFromPod     = chainPrefix + "FROM-POD"     // nat: masquerade, redirect
	chainFromHost    = chainPrefix + "FROM-HOST"    // nat: the same
	chainFromOutside = chainPrefix + "FROM-OUTSIDE" // nat: the same
	chainRedirect    = chainPrefix + "REDIRECT"     // nat: to the virtual server with the other pool
	chainPostrouting = chainPrefix + "POSTROUTING"  // nat
	chainMasquerade  = chainPrefix + "MASQUERADE"   // nat
	chainUndivert    = chainPrefix + "UNDIVERT"     // mangle: takes the mark of VIPMark away
	chainInput       = chainPrefix + "INPUT"        // filter
	chainForward     = chainPrefix + "FORWARD"      // filter
	chainOutput      = chainPrefix + "OUTPUT"       // filter
)

// The sets of a family, by the ends of their names (setName).
const (
	setFrontends = "FRONTENDS" // every virtual server that may be dialled
	setDivert    = "DIVERT"    // the same, and those that drain; VIPMark only
	setEmpty     = "EMPTY"     // frontends that have no endpoint for anybody
	setRanged    = "RANGED"    // frontends that not every source may dial
	setSources   = "SOURCES"   // who may dial these
	setVIPs      = "VIPS"      // addresses of Services, without those of the node
	setHealth    = "HEALTH"    // health-check node ports
	setHairpin   = "HAIRPIN"   // endpoints that can dial themselves; only without xt_bpf
	// By class of source, see classNames:
	setMasq     = "MASQ-"     // frontends whose connections are masqueraded
	setDrop     = "DROP-"     // frontends that drop
	setRedirect = "REDIRECT-" // frontends whose pool another virtual server has
)

// classNames end the names of sets by class.
var classNames = [fwd.NumClasses]string{fwd.Outside: "OUT", fwd.Pod: "POD", fwd.Host: "HOST"}

// setPrefix begins the names of the sets of a family. Sets of other names are never touched. A name has at most 31 bytes
// (IPSET_MAXNAMELEN less the final zero); the longest of ours has 23.
func setPrefix(f fwd.Family) string { return fmt.Sprintf("FAIRLEAD-%d-", f) }

func setName(f fwd.Family, what string) string { return setPrefix(f) + what }

// Rule fragments are written as iptables-save prints them, token for token, so that what was read compares equal to
// what was wanted.

const matchHostSource = "-m addrtype --src-type LOCAL"

// matchPod is the match of packets from local pods; empty if there is no detector.
func matchPod(d fwd.Detector) string {
	if d.Prefix.IsValid() {
		return "-s " + d.Prefix.String()
	}
	switch name, whole := d.Interface(); {
	case name == "":
		return ""
	case whole:
		return "-i " + name
	default:
		return "-i " + name + "+"
	}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// and joins the parts of a rule, leaving out empty ones.
func and(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		if p == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p)
	}
	return b.String()
}
