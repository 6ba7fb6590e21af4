package rulesim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Set is a set of ip_set. Make one with NewSet.
type Set struct {
	typ    string
	family fwd.Family
	// elements are the prefixes of the third dimension by the other dimensions.
	elements map[Element][]netip.Prefix
}

// Element is an element of a set. Dimensions that the set's type does not have are zero.
type Element struct {
	Addr  netip.Addr
	Proto fwd.Proto
	Port  uint16
	// Third is the third dimension: a prefix for hash:ip,port,net and one address for
	// hash:ip,port,ip.
	Third netip.Prefix
}

// dimensions are the numbers of dimensions of the simulated set types.
var dimensions = map[string]int{"hash:ip": 1, "hash:ip,port": 2, "hash:ip,port,ip": 3, "hash:ip,port,net": 3}

// NewSet returns an empty set.
func NewSet(typ string, f fwd.Family) (*Set, error) {
	if dimensions[typ] == 0 {
		return nil, fmt.Errorf("type %q of a set is not simulated", typ)
	}
	return &Set{typ: typ, family: f, elements: make(map[Element][]netip.Prefix)}, nil
}

// Add adds an element. An element that exists already changes nothing. What the kernel refuses is
// an error.
func (s *Set) Add(e Element) error {
	d := dimensions[s.typ]
	third := e.Third.IsValid()
	switch {
	case fwd.FamilyOf(e.Addr) != s.family || !e.Addr.IsValid(), third && fwd.FamilyOf(e.Third.Addr()) != s.family:
		return fmt.Errorf("set %s of %s: element %v is of another family", s.typ, s.family, e)
	case (e.Proto != 0 || e.Port != 0) != (d > 1), third != (d > 2), d > 1 && e.Proto == 0:
		return fmt.Errorf("set %s: element %v has other dimensions", s.typ, e)
	case s.typ == "hash:ip,port,net" && e.Third.Bits() == 0, s.typ == "hash:ip,port,ip" && !e.Third.IsSingleIP():
		return fmt.Errorf("set %s: element %v has a prefix of length %d", s.typ, e, e.Third.Bits())
	}
	key := e
	key.Third = netip.Prefix{}
	if p := e.Third.Masked(); !slices.Contains(s.elements[key], p) {
		s.elements[key] = append(s.elements[key], p)
	}
	return nil
}

// setMatch is -m set --match-set.
type setMatch struct {
	plain
	// exists is Ruleset.HaveSet.
	exists func(string) bool

	name string
	dims []string
	neg  bool
}

// The limits of ip_set.
const (
	maxSetName = 31
	maxDims    = 3
)

func (m *setMatch) options(fwd.Family) []option {
	return []option{{name: "--match-set", words: 2, required: true, invertible: true, set: func(s string, neg bool) error {
		name, dims, _ := strings.Cut(s, " ")
		m.name, m.dims, m.neg = name, strings.Split(dims, ","), neg
		bad := slices.ContainsFunc(m.dims, func(d string) bool { return d != "src" && d != "dst" })
		if name == "" || len(name) > maxSetName || len(m.dims) > maxDims || bad {
			return fmt.Errorf("want a name of at most %d bytes and up to %d of src and dst", maxSetName, maxDims)
		}
		if m.exists != nil && !m.exists(name) {
			return errors.New("no such set")
		}
		return nil
	}}}
}

func (m *setMatch) String() string {
	return "set" + invertible("--match-set", m.name+" "+strings.Join(m.dims, ","), m.neg)
}

func (m *setMatch) matches(w *walk) (float64, error) {
	s := w.host.Sets[m.name]
	if s == nil {
		return 0, fmt.Errorf("there is no set %q", m.name)
	}
	d := dimensions[s.typ]
	if len(m.dims) < d || s.family != w.rs.family {
		return certain(m.neg) // the kernel accepts such a rule; it never finds an element
	}
	addr := func(i int) netip.Addr {
		if m.dims[i] == "src" {
			return w.src
		}
		return w.dst.Addr()
	}
	key := Element{Addr: addr(0)}
	if d > 1 {
		if m.dims[1] == "src" {
			return 0, errors.New("source ports are not simulated")
		}
		key.Proto, key.Port = w.proto, w.dst.Port()
	}
	prefixes, in := s.elements[key]
	if in && d > 2 {
		in = slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr(2)) })
	}
	return certain(in != m.neg)
}
