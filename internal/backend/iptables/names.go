package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// Table is an iptables table that Fairlead uses.
type Table uint8

// The tables, in the order in which their objects are listed.
const (
	Filter Table = iota
	NAT
)

func (t Table) String() string { return [...]string{"filter", "nat"}[t] }

// ChainID identifies a chain of one family.
type ChainID struct {
	Table Table
	Name  string
}

func (c ChainID) String() string { return c.Table.String() + "/" + c.Name }

// chainPrefix is the prefix of all our chains; other chains are never written. In the kernel, the
// chains of a named instance have another prefix of the same length (names), so that everything
// that depends on length and order holds for them too.
const chainPrefix = "FAIRLEAD-"

// names translates between the chain names in this package and an instance's names in the kernel.
func names(id instance.ID) xtables.Exchange { return xtables.NewExchange(chainPrefix, id.Prefix()) }

// The chains that every node has. The jumps to them from built-in chains are in static.go.
const (
	chainServices      = chainPrefix + "SERVICES"
	chainNodePorts     = chainPrefix + "NODEPORTS"
	chainAddMark       = chainPrefix + "ADD-MARK"
	chainAddMarkNonPod = chainPrefix + "ADD-MARK-NONPOD"
	chainPostrouting   = chainPrefix + "POSTROUTING"
	chainMasquerade    = chainPrefix + "MASQUERADE"
	chainHairpin       = chainPrefix + "HAIRPIN"
	chainInput         = chainPrefix + "INPUT"
	chainForward       = chainPrefix + "FORWARD"
	chainOutput        = chainPrefix + "OUTPUT"
	chainFilter        = chainPrefix + "FILTER"
	chainHealth        = chainPrefix + "HEALTHCHECKS"
	chainHealthReplies = chainPrefix + "HEALTHREPLIES"
	chainUnmoved       = chainPrefix + "UNMOVED"
)

// The letters of the other chains: FAIRLEAD-<letter>-<hash>. A chain jumps to chains with later
// letters, so that the order by name is also the order of dependence (order.go).
const (
	letterLocalTree = "B" // nat: dispatch by endpoint address, for hairpin without xt_bpf
	letterVIPTree   = "C" // both: dispatch by virtual IP
	letterPortTree  = "D" // both: dispatch by node port
	letterAdmit     = "E" // nat: source ranges, then F
	letterFrontend  = "F" // nat: routes by class of source, then the pool
	letterUnmoved   = "G" // both: dispatch of frontends that keep their address
	letterHealth    = "H" // filter: dispatch of health-check node ports
	letterReplies   = "I" // filter: the same for replies
	letterPool      = "P" // nat: a pool that several chains jump to
	letterUnadmit   = "Q" // filter: source ranges, then R
	letterVerdict   = "R" // filter: reject or drop by class of source
	letterGroup     = "S" // nat: a part of a large pool
	letterAffinity  = "X" // not a chain: the xt_recent list of an endpoint
)

// hashedName returns the chain name for the parts. A chain name has at most 28 bytes
// (XT_EXTENSION_MAXNAMELEN without the final zero): 9 for the prefix, 1 for the letter, 1 for the
// dash and 16 for 80 bits of the hash leave one byte. Apart from comments, this is the only way for
// a name that a user chose to get into a rule.
func hashedName(letter string, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return chainPrefix + letter + "-" + base32.StdEncoding.EncodeToString(sum[:10])
}

// portName names a chain of a service port of one family. what distinguishes the chains with the
// same letter.
func portName(letter string, p fwd.ServicePort, f fwd.Family, what string) string {
	return hashedName(letter, p.Namespace, p.Name, p.Port, p.Proto.String(), f.String(), what)
}

// commentOf is the comment of a rule of a service port: namespace/name:port. Objects can come from
// files, so characters that the API server would refuse are replaced. Long names are cut: iptables
// accepts 255 bytes.
func commentOf(p fwd.ServicePort) string {
	s := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-._/:", r):
			return r
		}
		return '?'
	}, p.String())
	if len(s) > 200 {
		s = s[:200]
	}
	return `-m comment --comment "` + s + `"`
}

// Rule fragments are written exactly as iptables-save prints them, so that rules that were read
// compare equal to the desired ones.

func hostPrefix(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

func dport(p fwd.Proto, lo, hi uint16) string {
	if lo == hi {
		return fmt.Sprintf("-p %s -m %s --dport %d", p, p, lo)
	}
	return fmt.Sprintf("-p %s -m %s --dport %d:%d", p, p, lo, hi)
}

func sport(p fwd.Proto, lo, hi uint16) string {
	return strings.Replace(dport(p, lo, hi), "--dport", "--sport", 1)
}

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

// and joins the parts of a rule, without empty ones.
func and(parts ...string) string {
	size := 0
	for _, p := range parts {
		size += len(p) + 1
	}
	b := make([]byte, 0, size)
	for _, p := range parts {
		if p == "" {
			continue
		}
		if len(b) > 0 {
			b = append(b, ' ')
		}
		b = append(b, p...)
	}
	return string(b)
}
