package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	netutils "k8s.io/utils/net"

	"github.com/fairlead/fairlead/internal/fwd"
)

// anything takes every text.
func anything(s string) (string, error) { return s, nil }

// orElse takes every text; nothing is usual.
func orElse(usual string) func(string) (string, error) {
	return func(s string) (string, error) {
		if s == "" {
			s = usual
		}
		return s, nil
	}
}

// parseInterface reads the name of an interface or the beginning of one, so that each mode can write it into a rule and the
// kernel can have an interface with that name (net/core/dev.c, dev_valid_name). Nothing stands for none.
func parseInterface(s string) (string, error) {
	if len(s) > fwd.MaxInterfaceName {
		return "", fmt.Errorf("want at most %d characters, as names of interfaces have, not %d", fwd.MaxInterfaceName, len(s))
	}
	if strings.ContainsAny(s, "+*") {
		return "", errors.New("want no wildcard: a prefix matches all names that begin with it")
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/:!"'\`, r) }); i >= 0 {
		return "", fmt.Errorf("want the characters of an interface's name, not %q", []rune(s[i:])[0])
	}
	return s, nil
}

// parseScheduler reads the kernel's name of an IPVS scheduler; nothing is rr.
func parseScheduler(s string) (string, error) {
	const longest = 15 // linux/ip_vs.h, IP_VS_SCHEDNAME_MAXLEN less the final zero
	if len(s) > longest {
		return "", fmt.Errorf("want at most %d characters, as names of schedulers have, not %d", longest, len(s))
	}
	return cmp.Or(s, "rr"), nil
}

// choice takes one of a set of names; nothing is the first.
func choice[T ~string](all []T) func(string) (T, error) {
	return func(s string) (T, error) { return oneOf(s, all) }
}

// parserOf checks a text of which only the type matters.
func parserOf(typ string) func(string) (string, error) {
	if typ != boolean {
		return anything
	}
	return func(s string) (string, error) {
		b, err := parseBool(s)
		return strconv.FormatBool(b), err
	}
}

func parseBool(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("want true or false")
	}
	return b, nil
}

// parseVersion takes what kube-proxy takes for --version: also raw, and a version to pretend.
func parseVersion(s string) (bool, error) {
	if s == "raw" || strings.HasPrefix(s, "v") {
		return true, nil
	}
	b, err := parseBool(s)
	if err != nil {
		err = errors.New("want true, false or raw")
	}
	return b, err
}

func parseInt(least, most int) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("want a whole number from %d to %d", least, most)
		}
		return n, nil
	}
}

func parseBit(s string) (uint8, error) {
	n, err := parseInt(0, 31)(s)
	return uint8(n), err
}

// parseQPS reads the rate limit; client-go takes 0 for 5.
func parseQPS(s string) (float32, error) {
	f, err := strconv.ParseFloat(s, 32)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, errors.New("want a number")
	}
	if f == 0 {
		f = 5
	}
	return float32(f), nil
}

// parseBurst reads the number of requests at once; client-go takes 0 for 10.
func parseBurst(s string) (int, error) {
	n, err := parseInt(0, math.MaxInt32)(s)
	if n == 0 {
		n = 10
	}
	return n, err
}

func parsePositive(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, errors.New("want a duration above 0 with a unit, such as 30s")
	}
	return d, nil
}

func parseNonNegative(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, errors.New("want a duration with a unit, such as 1s, or 0")
	}
	return d, nil
}

func parseNodeName(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	name := strings.ToLower(strings.TrimSpace(s))
	if name == "" {
		return "", errors.New("want the name of a Node object, not blanks")
	}
	return name, nil
}

// labelValue is what Kubernetes takes for the value of a label, where that is not empty.
var labelValue = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)

func parseLabelValue(s string) (string, error) {
	if s != "" && !labelValue.MatchString(s) {
		return "", errors.New("want the value of a label: at most 63 letters, digits, '-', '_' and '.', the first and the last a letter or digit")
	}
	return s, nil
}

// parseIP reads an address; as for kube-proxy, the numbers of an IPv4 address may begin with zeros.
func parseIP(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a, !a.Is4In6() && a.Zone() == ""
	}
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	return a.Unmap(), ok && !strings.Contains(s, ":")
}

// parseAddr reads an address; nothing is the unspecified one.
func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.IPv4Unspecified(), nil
	}
	a, ok := parseIP(s)
	if !ok {
		return netip.Addr{}, errors.New("want an IPv4 or IPv6 address")
	}
	return a, nil
}

// parseListen reads an address with or without a port.
func parseListen(port uint16) func(string) (netip.AddrPort, error) {
	return func(s string) (netip.AddrPort, error) {
		if s == "" {
			return netip.AddrPort{}, nil
		}
		if a, ok := parseIP(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); ok {
			return netip.AddrPortFrom(a, port), nil
		}
		i := strings.LastIndexByte(s, ':')
		if i < 0 {
			return netip.AddrPort{}, badListen(port)
		}
		host, text := s[:i], s[i+1:]
		if bare, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(bare, "]") {
			host = strings.TrimSuffix(bare, "]")
		} else if strings.Contains(host, ":") {
			return netip.AddrPort{}, badListen(port)
		}
		a, ok := parseIP(host)
		n, err := strconv.ParseUint(text, 10, 16)
		if !ok || err != nil || n == 0 {
			return netip.AddrPort{}, badListen(port)
		}
		return netip.AddrPortFrom(a, uint16(n)), nil
	}
}

func badListen(port uint16) error {
	return fmt.Errorf("want IP:port with a port from 1 to 65535, IP (for port %d), or nothing for no server", port)
}

func parsePrefix(s string) (netip.Prefix, error) {
	addr, bits, _ := strings.Cut(strings.TrimSpace(s), "/")
	if a, ok := parseIP(addr); ok {
		if p, err := netip.ParsePrefix(a.String() + "/" + bits); err == nil {
			return p.Masked(), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8 or fd00::/64", s)
}

// parsePrefixes reads a comma list; nothing is an empty list.
func parsePrefixes(s string) ([]netip.Prefix, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	var out []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		p, err := parsePrefix(part)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// parseNodePortAddresses reads a comma list.
func parseNodePortAddresses(s string) (NodePortAddresses, error) {
	var n NodePortAddresses
	for part := range strings.SplitSeq(s, ",") {
		switch part = strings.TrimSpace(part); part {
		case "":
		case "primary":
			n.Primary = true
		case "localhost":
			n.Localhost = true
		case "all":
			n.All = true
		default:
			p, err := parsePrefix(part)
			if err != nil {
				return NodePortAddresses{}, fmt.Errorf("%w, nor primary, localhost or all", err)
			}
			n.Prefixes = append(n.Prefixes, p)
		}
	}
	return n, nil
}

// String is the form that the flag takes.
func (n NodePortAddresses) String() string {
	var parts []string
	for _, w := range []struct {
		on   bool
		word string
	}{{n.Primary, "primary"}, {n.Localhost, "localhost"}, {n.All, "all"}} {
		if w.on {
			parts = append(parts, w.word)
		}
	}
	for _, p := range n.Prefixes {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

// parseVModule reads pattern=level pairs, and returns them without blanks.
func parseVModule(s string) (string, error) {
	var out []string
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		pattern, level, _ := strings.Cut(pair, "=")
		if n, err := strconv.ParseUint(level, 10, 31); err == nil && pattern != "" {
			out = append(out, fmt.Sprintf("%s=%d", pattern, n))
			continue
		}
		return "", fmt.Errorf("%q is not a pattern with a level, such as proxy*=4", pair)
	}
	return strings.Join(out, ","), nil
}

// parsePortRange checks a range as the userspace mode had it: 30000-30100, 30000+100, or one port.
func parsePortRange(s string) (string, error) {
	const want = "want ports such as 30000-30100"
	low, high, ranged := strings.Cut(s, "-")
	more, plus := "", false
	if !ranged {
		low, more, plus = strings.Cut(s, "+")
	}
	if s == "" {
		return s, nil
	}
	from, err := strconv.ParseUint(strings.TrimSpace(low), 10, 16)
	to := from
	if err == nil && ranged {
		to, err = strconv.ParseUint(strings.TrimSpace(high), 10, 16)
	}
	if err == nil && plus {
		to, err = strconv.ParseUint(strings.TrimSpace(more), 10, 16)
		to += from
	}
	if err != nil || to < from || to > math.MaxUint16 {
		return "", errors.New(want)
	}
	return s, nil
}

// gateFields are the gates that change anything here; all are on by default.
func (c *Config) gateFields() map[string]*bool {
	return map[string]*bool{
		"AllowServiceExternalIPs":       &c.Gates.AllowServiceExternalIPs,
		"PreferSameTrafficDistribution": &c.Gates.PreferSameTrafficDistribution,
		"LoadBalancerIPMode":            &c.Gates.LoadBalancerIPMode,
	}
}

// gates is the text of all gates that are not as they are by default. A file that is written has no others, so that a
// program that does not know one of ours can read it.
func (c *Config) gates() string {
	all := make(map[string]bool)
	maps.Copy(all, c.UnknownGates)
	for name, on := range c.gateFields() {
		if !*on {
			all[name] = false
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, fmt.Sprintf("%s=%t", name, all[name]))
	}
	return strings.Join(out, ",")
}

// setGates reads Gate=bool pairs. Gates that are not in the text stay as they are.
func (c *Config) setGates(s string) error {
	known := c.gateFields()
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, text, found := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		on, err := strconv.ParseBool(strings.TrimSpace(text))
		if !found || name == "" || err != nil {
			return fmt.Errorf("%q is not a gate with true or false, such as LoadBalancerIPMode=true", pair)
		}
		if gate := known[name]; gate != nil {
			*gate = on
			continue
		}
		if c.UnknownGates == nil {
			c.UnknownGates = make(map[string]bool)
		}
		c.UnknownGates[name] = on
	}
	return nil
}
