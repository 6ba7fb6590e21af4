package ipset

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// hashSize is the number of buckets with which a hash begins; the kernel makes it larger when needed.
const hashSize = 1024

// protocols are the names that ipset gives to the protocols that have ports.
var protocols = map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}

func protoName(p uint8) string {
	if s, ok := protocols[p]; ok {
		return s
	}
	return strconv.Itoa(int(p))
}

// Save writes sets as ipset save does: all of a set's entries follow the set. ipset restore reads it.
func Save(sets []Content) string {
	var b strings.Builder
	for _, c := range sets {
		fmt.Fprintf(&b, "create %s %s", c.Name, c.Type)
		if c.Type == BitmapPort {
			b.WriteString(" range 0-65535\n")
		} else {
			fmt.Fprintf(&b, " family %s hashsize %d maxelem %d\n", c.family(), hashSize, c.MaxElem)
		}
		for _, e := range c.Entries {
			fmt.Fprintf(&b, "add %s %s\n", c.Name, e)
		}
	}
	return b.String()
}

// Parse reads what Save writes, and what ipset save writes of such sets. It takes nothing that the kernel would refuse.
// The sets are in the order in which they are created, their entries sorted.
func Parse(text string) ([]Content, error) {
	var out []Content
	index := make(map[string]int)
	seen := make(map[Change]bool)
	for i, line := range strings.Split(text, "\n") {
		err := func() error {
			f := strings.Fields(line)
			switch {
			case len(f) == 0 || strings.HasPrefix(f[0], "#"):
				return nil
			case f[0] == "create" && len(f) >= 3:
				s, err := parseSet(f[1:])
				if _, again := index[s.Name]; err == nil && again {
					err = fmt.Errorf("set %s: %w", s.Name, ErrExist)
				}
				index[s.Name] = len(out)
				out = append(out, Content{Set: s})
				return err
			case f[0] == "add" && len(f) == 3:
				at, ok := index[f[1]]
				if !ok {
					return fmt.Errorf("set %s: %w", f[1], ErrNoSet)
				}
				e, err := ParseEntry(out[at].Set, f[2])
				ch := Change{Set: out[at].Set, Entry: e}
				switch {
				case err != nil:
					return err
				case seen[ch]:
					return refusal(ch, ErrExist)
				case len(out[at].Entries) == int(ch.Set.MaxElem) && ch.Set.Type != BitmapPort:
					return refusal(ch, ErrFull)
				}
				seen[ch] = true
				out[at].Entries = append(out[at].Entries, e)
				return nil
			}
			return fmt.Errorf("%w line %q", ErrInvalid, line)
		}()
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	for _, c := range out {
		slices.SortFunc(c.Entries, Entry.Compare)
	}
	return out, nil
}

// parseSet reads name, type and settings. What this package does not set must have its default.
func parseSet(f []string) (Set, error) {
	s := Set{Name: f[0], Type: Type(f[1])}
	if len(f)%2 != 0 {
		return s, fmt.Errorf("set %s: %w: a setting without a value", s.Name, ErrInvalid)
	}
	for f = f[2:]; len(f) > 0; f = f[2:] {
		switch key, value := f[0], f[1]; {
		case key == "family" && (value == "inet" || value == "inet6"):
			s.IPv6 = value == "inet6"
		case key == "maxelem":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return s, fmt.Errorf("set %s: %w maxelem %q", s.Name, ErrInvalid, value)
			}
			s.MaxElem = uint32(n)
		case key == "range" && value == "0-65535" && s.Type == BitmapPort:
		case key == "hashsize", key == "bucketsize", key == "initval": // the kernel's business
		default:
			return s, fmt.Errorf("set %s: %w setting %s %s", s.Name, ErrInvalid, key, value)
		}
	}
	return s, s.Validate()
}

// ParseEntry reads an entry of a set as Entry.String writes it.
func ParseEntry(s Set, text string) (Entry, error) {
	addr, proto, net, _ := s.Type.shape()
	var e Entry
	fail := func() (Entry, error) {
		return Entry{}, fmt.Errorf("entry %q of %s (%s): %w", text, s.Name, s.Type, ErrInvalid)
	}
	rest, more := text, true
	next := func() (part string) {
		part, rest, more = strings.Cut(rest, ",")
		return part
	}
	var err error
	if addr {
		if e.Addr, err = netip.ParseAddr(next()); err != nil {
			return fail()
		}
	}
	port := ""
	switch {
	case proto && more:
		var name string
		name, port, _ = strings.Cut(next(), ":")
		for number, n := range protocols {
			if n == name {
				e.Proto = number
			}
		}
	case s.Type == BitmapPort:
		port = next()
	}
	if port != "" || proto {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return fail()
		}
		e.Port = uint16(n)
	}
	if net && more {
		if e.Net, err = parseNet(next()); err != nil {
			return fail()
		}
	}
	if more {
		return fail()
	}
	return e, e.Validate(s)
}

// parseNet reads a network, or an address, which stands for the network of that address alone.
func parseNet(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}
