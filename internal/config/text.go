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

	logsapi "k8s.io/component-base/logs/api/v1"
	netutils "k8s.io/utils/net"

	"github.com/fairlead/fairlead/internal/fwd"
)

// anything accepts every text.
func anything(s string) (string, error) { return s, nil }

// orElse accepts every text; empty means def.
func orElse(def string) func(string) (string, error) {
	return func(s string) (string, error) {
		return cmp.Or(s, def), nil
	}
}

// parseInterface parses an interface name or a prefix of one. Every mode can write it into a rule,
// and the kernel allows an interface with this name (net/core/dev.c, dev_valid_name). Empty means
// none.
func parseInterface(s string) (string, error) {
	if len(s) > fwd.MaxInterfaceName {
		return "", fmt.Errorf("want an interface name of at most %d characters, not %d", fwd.MaxInterfaceName, len(s))
	}
	if strings.ContainsAny(s, "+*") {
		return "", errors.New("want no wildcard: a prefix matches all names that start with it")
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/:!"'\`, r) }); i >= 0 {
		return "", fmt.Errorf("want an interface name without %q", []rune(s[i:])[0])
	}
	return s, nil
}

// parseScheduler parses the kernel's name of an IPVS scheduler; empty means rr.
func parseScheduler(s string) (string, error) {
	const longest = 15 // linux/ip_vs.h, IP_VS_SCHEDNAME_MAXLEN less the final zero
	if len(s) > longest {
		return "", fmt.Errorf("want a scheduler name of at most %d characters, not %d", longest, len(s))
	}
	return cmp.Or(s, "rr"), nil
}

// choice accepts one of a set of names; empty means the first.
func choice[T ~string](all []T) func(string) (T, error) {
	return func(s string) (T, error) {
		if s == "" {
			return all[0], nil
		}
		if slices.Contains(all, T(s)) {
			return T(s), nil
		}
		names := make([]string, 0, len(all))
		for _, a := range all {
			names = append(names, string(a))
		}
		return "", fmt.Errorf("want %s", strings.Join(names, ", "))
	}
}

// parseBoolText checks that a text is a bool.
func parseBoolText(s string) (string, error) {
	b, err := parseBool(s)
	return strconv.FormatBool(b), err
}

func parseBool(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("want true or false")
	}
	return b, nil
}

// parseVersion accepts what kube-proxy accepts for --version: also raw, and a version to report.
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

// parseQPS parses the rate limit; 0 means client-go's default of 5.
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

// parseBurst parses the burst size; 0 means client-go's default of 10.
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
		return "", errors.New("want the name of a Node object, not spaces")
	}
	return name, nil
}

// labelValue matches the values of labels that Kubernetes accepts, except the empty one.
var labelValue = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)

func parseLabelValue(s string) (string, error) {
	if s != "" && !labelValue.MatchString(s) {
		return "", errors.New("want the value of a label: at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit")
	}
	return s, nil
}

// parseIP parses an address. As in kube-proxy, the octets of an IPv4 address may have leading
// zeros.
func parseIP(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a, !a.Is4In6() && a.Zone() == ""
	}
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	return a.Unmap(), ok && !strings.Contains(s, ":")
}

// parseAddr parses an address; empty means 0.0.0.0.
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

// parseListen parses an address with or without a port; empty means no server.
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
	return fmt.Errorf("want IP:port with a port from 1 to 65535, IP (with port %d), or empty for no server", port)
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

// parsePrefixes parses a comma-separated list, which may be empty.
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

// parseNodePortAddresses parses a comma-separated list, which may be empty.
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

// String returns the value in the format of the flag.
func (n NodePortAddresses) String() string {
	var parts []string
	if n.Primary {
		parts = append(parts, "primary")
	}
	if n.Localhost {
		parts = append(parts, "localhost")
	}
	if n.All {
		parts = append(parts, "all")
	}
	for _, p := range n.Prefixes {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

// parseVModule checks pattern=level pairs and returns them without spaces.
func parseVModule(s string) (string, error) {
	var items logsapi.VModuleConfiguration
	flag := logsapi.VModuleConfigurationPflag(&items)
	for pair := range strings.SplitSeq(s, ",") {
		if err := flag.Set(strings.TrimSpace(pair)); err != nil {
			return "", fmt.Errorf("%q: want a pattern with a level, such as proxy*=4", pair)
		}
	}
	return flag.String(), nil
}

// parsePortRange checks a port range of kube-proxy's userspace mode: 30000-30100, 30000+100, or one
// port.
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

// gateFields returns the gates that have an effect; all are on by default.
func (c *Config) gateFields() map[string]*bool {
	return map[string]*bool{
		"AllowServiceExternalIPs":       &c.Gates.AllowServiceExternalIPs,
		"PreferSameTrafficDistribution": &c.Gates.PreferSameTrafficDistribution,
		"LoadBalancerIPMode":            &c.Gates.LoadBalancerIPMode,
	}
}

// gates returns the text of all gates that are not at their default. A file that we write has no
// others, so that a program that does not know one of our gates can read it.
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

// setGates parses Gate=bool pairs. Gates that are not in the text keep their values.
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
			return fmt.Errorf("%q: want a gate with true or false, such as LoadBalancerIPMode=true", pair)
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
