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

// chainPrefix is the prefix of our chains; in built-in chains only jumps to these are ours. In the
// kernel, chains and sets of a named instance have another prefix of the same length (names).
const chainPrefix = "FAIRLEAD-"

// names translates between the names in this package and the names of an instance in the kernel.
func names(id instance.ID) xtables.Exchange { return xtables.NewExchange(chainPrefix, id.Prefix()) }

// The chains. static.go has the jumps to them from built-in chains.
const (
	chainDivert      = chainPrefix + "DIVERT"       // mangle: packets to a frontend get the mark of VIPMark
	chainGuard       = chainPrefix + "GUARD"        // mangle: source ranges and routes that drop
	chainServices    = chainPrefix + "SERVICES"     // nat: jumps to one of the next three
	chainFromPod     = chainPrefix + "FROM-POD"     // nat: masquerade, redirect
	chainFromHost    = chainPrefix + "FROM-HOST"    // nat: the same
	chainFromOutside = chainPrefix + "FROM-OUTSIDE" // nat: the same
	chainRedirect    = chainPrefix + "REDIRECT"     // nat: DNAT to the virtual server with the other pool
	chainPostrouting = chainPrefix + "POSTROUTING"  // nat
	chainMasquerade  = chainPrefix + "MASQUERADE"   // nat
	chainUndivert    = chainPrefix + "UNDIVERT"     // mangle: clears the mark of VIPMark
	chainInput       = chainPrefix + "INPUT"        // filter
	chainForward     = chainPrefix + "FORWARD"      // filter
	chainOutput      = chainPrefix + "OUTPUT"       // filter
)

// The sets of a family, by the suffix of their names (setName).
const (
	setFrontends = "FRONTENDS" // every virtual server that accepts new connections
	setDivert    = "DIVERT"    // these and those that drain; VIPMark only
	setEmpty     = "EMPTY"     // frontends without endpoints for any source
	setRanged    = "RANGED"    // frontends with source ranges
	setSources   = "SOURCES"   // the allowed sources of these
	setVIPs      = "VIPS"      // addresses of Services except those of the node
	setHealth    = "HEALTH"    // health-check node ports
	setHairpin   = "HAIRPIN"   // endpoints that may connect to themselves; only without xt_bpf
	// By class of source, see classNames:
	setMasq     = "MASQ-"     // frontends whose connections are masqueraded
	setDrop     = "DROP-"     // frontends whose connections are dropped
	setRedirect = "REDIRECT-" // frontends whose connections go to another virtual server
)

// classNames are the suffixes of sets by class.
var classNames = [fwd.NumClasses]string{fwd.Outside: "OUT", fwd.Pod: "POD", fwd.Host: "HOST"}

// setPrefix is the prefix of the sets of a family. Other sets are never changed. The kernel allows
// 31 bytes; our longest name has 23.
func setPrefix(f fwd.Family) string { return fmt.Sprintf("FAIRLEAD-%d-", f) }

func setName(f fwd.Family, what string) string { return setPrefix(f) + what }

// Parts of rules are written exactly as iptables-save prints them, so that actual rules compare
// equal to wanted ones.

const matchHostSource = "-m addrtype --src-type LOCAL"

// matchPod returns the match for packets from local pods, empty without a detector.
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

// and joins the parts of a rule and skips empty ones.
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
