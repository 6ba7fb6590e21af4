package ipsetfake

import (
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/ipset"
)

// Save formats sets as "ipset save" does: each set is followed by its entries.
func Save(sets []ipset.Content) string {
	var b strings.Builder
	for _, c := range sets {
		fmt.Fprintf(&b, "create %s %s", c.Name, c.Type)
		if c.Type == ipset.BitmapPort {
			b.WriteString(" range 0-65535\n")
		} else {
			fmt.Fprintf(&b, " family %s hashsize %d maxelem %d\n", c.Family(), ipset.HashSize, c.MaxElem)
		}
		for _, e := range c.Entries {
			fmt.Fprintf(&b, "add %s %s\n", c.Name, e)
		}
	}
	return b.String()
}

// Parse parses the output of Save. The sets are sorted by name, and their entries by Entry.Compare.
func Parse(text string) ([]ipset.Content, error) {
	var f Sets
	if err := f.load(text); err != nil {
		return nil, err
	}
	return f.contents(""), nil
}

// Load adds the sets of the text that Save prints. It panics if the kernel would refuse one.
func (f *Sets) Load(text string) {
	var loaded Sets
	if err := loaded.load(text); err != nil {
		panic("ipsetfake: " + err.Error())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sets == nil {
		f.sets = make(map[string]*fakeSet)
	}
	maps.Copy(f.sets, loaded.sets)
}

func (f *Sets) load(text string) error {
	for i, line := range strings.Split(text, "\n") {
		if line == "" {
			continue
		}
		if err := f.loadLine(strings.Fields(line)); err != nil {
			return fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return nil
}

func (f *Sets) loadLine(words []string) error {
	switch {
	case len(words) >= 3 && words[0] == "create":
		s, err := parseSet(words[1:])
		if err != nil {
			return err
		}
		if f.sets[s.Name] != nil {
			return fmt.Errorf("set %s: %w", s.Name, ipset.ErrExist)
		}
		return f.create(s)
	case len(words) == 3 && words[0] == "add":
		s := f.sets[words[1]]
		if s == nil {
			return fmt.Errorf("set %s: %w", words[1], ipset.ErrNoSet)
		}
		e, err := ParseEntry(s.Set, words[2])
		if err != nil {
			return err
		}
		return f.change(ipset.Change{Set: s.Set, Entry: e})
	}
	return fmt.Errorf("%w line %q", ipset.ErrInvalid, strings.Join(words, " "))
}

// parseSet parses name, type and settings. Settings that package ipset does not make must have
// their defaults.
func parseSet(words []string) (ipset.Set, error) {
	s := ipset.Set{Name: words[0], Type: ipset.Type(words[1])}
	for settings := words[2:]; len(settings) > 0; settings = settings[2:] {
		if len(settings) < 2 {
			return s, fmt.Errorf("set %s: %w: setting without a value", s.Name, ipset.ErrInvalid)
		}
		switch key, value := settings[0], settings[1]; {
		case key == "family" && (value == "inet" || value == "inet6"):
			s.IPv6 = value == "inet6"
		case key == "maxelem":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return s, fmt.Errorf("set %s: %w maxelem %q", s.Name, ipset.ErrInvalid, value)
			}
			s.MaxElem = uint32(n)
		case key == "range" && value == "0-65535" && s.Type == ipset.BitmapPort:
		case key == "hashsize", key == "bucketsize", key == "initval": // the kernel chooses these
		default:
			return s, fmt.Errorf("set %s: %w setting %s %s", s.Name, ipset.ErrInvalid, key, value)
		}
	}
	return s, s.Validate()
}

// ParseEntry parses an entry of a set as Entry.String formats it: ADDR, ADDR,PROTO:PORT,
// ADDR,PROTO:PORT,NET or PORT.
func ParseEntry(s ipset.Set, text string) (e ipset.Entry, err error) {
	parts := strings.Split(text, ",")
	if s.Type == ipset.BitmapPort {
		e.Port, err = parsePort(text)
	} else {
		e.Addr, err = netip.ParseAddr(parts[0])
	}
	if err == nil && len(parts) > 1 {
		proto, port, _ := strings.Cut(parts[1], ":")
		e.Proto = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[proto]
		e.Port, err = parsePort(port)
	}
	if err == nil && len(parts) > 2 {
		e.Net, err = parseNet(parts[2])
	}
	if err != nil || len(parts) > 3 {
		return ipset.Entry{}, fmt.Errorf("entry %q of %s (%s): %w", text, s.Name, s.Type, ipset.ErrInvalid)
	}
	return e, e.Validate(s)
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err
}

// parseNet parses a network, or an address as the network of that single address.
func parseNet(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}
