package instance

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"strings"
)

// ID identifies an instance in the kernel. The zero ID is that of the instance without a name; all others have
// at most 25 bits.
type ID uint32

const (
	bits     = 25
	tagBytes = bits / 5 // of base32
)

// Of returns the ID of the instance with that value of --service-proxy-name; an empty one is that of the instance without.
func Of(name string) ID {
	if name == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(name))
	return max(1, ID(binary.BigEndian.Uint32(sum[:])>>(32-bits)))
}

// tag is the ID in five characters, empty for the zero ID.
func (i ID) tag() string {
	if i == 0 {
		return ""
	}
	var b [5]byte
	binary.BigEndian.PutUint32(b[:], uint32(i)<<(32-bits))
	return base32.StdEncoding.EncodeToString(b[:])[:tagBytes]
}

// parseTag is the reverse of tag, in upper case.
func parseTag(s string) (ID, bool) {
	if len(s) != tagBytes {
		return 0, false
	}
	b, err := base32.StdEncoding.DecodeString(s + "AAA")
	if err != nil {
		return 0, false
	}
	i := ID(binary.BigEndian.Uint32(b) >> (32 - bits))
	return i, i != 0
}

// NamedPrefix begins the Prefix of every instance with a name, and nearly nothing else.
const NamedPrefix = "FL-"

const (
	unnamedPrefix = "FAIRLEAD-"
	unnamedTable  = "fairlead"
	unnamedDevice = "kube-ipvs0"
	// namedDevice begins like unnamedDevice, since other programs leave devices alone that begin so.
	namedDevice = "kube-ipvs-"
)

// String is the name of the table: "fairlead", or "fairlead-" and five characters.
func (i ID) String() string { return i.Table() }

// Prefix begins the names of chains, sets and xt_recent lists. It has nine bytes.
func (i ID) Prefix() string {
	if i == 0 {
		return unnamedPrefix
	}
	return NamedPrefix + i.tag() + "-"
}

// Table is the name of the tables of nf_tables.
func (i ID) Table() string {
	if i == 0 {
		return unnamedTable
	}
	return unnamedTable + "-" + strings.ToLower(i.tag())
}

// Device is the name of the device that virtual IPs are on. It has at most 15 bytes (IFNAMSIZ less the final zero).
func (i ID) Device() string {
	if i == 0 {
		return unnamedDevice
	}
	return namedDevice + strings.ToLower(i.tag())
}

// Routing is the number of the routing table and the metric of routes of the instance, 0 for the zero ID.
func (i ID) Routing() uint32 {
	if i == 0 {
		return 0
	}
	return 1<<bits | uint32(i)
}

// OfRouting is the reverse of Routing.
func OfRouting(n uint32) (ID, bool) {
	i := ID(n &^ (1 << bits))
	return i, i.Routing() == n
}

// OfObject says to which instance a chain or set belongs.
func OfObject(name string) (ID, bool) {
	if strings.HasPrefix(name, unnamedPrefix) {
		return 0, true
	}
	rest, ok := strings.CutPrefix(name, NamedPrefix)
	if !ok {
		return 0, false
	}
	tag, _, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false
	}
	return parseTag(tag)
}

// OfTable says to which instance a table of nf_tables belongs.
func OfTable(name string) (ID, bool) {
	if name == unnamedTable {
		return 0, true
	}
	tag, ok := strings.CutPrefix(name, unnamedTable+"-")
	if !ok || tag != strings.ToLower(tag) {
		return 0, false
	}
	return parseTag(strings.ToUpper(tag))
}

// OfDevice says to which instance a device of virtual IPs belongs.
func OfDevice(name string) (ID, bool) {
	if name == unnamedDevice {
		return 0, true
	}
	tag, ok := strings.CutPrefix(name, namedDevice)
	if !ok || tag != strings.ToLower(tag) {
		return 0, false
	}
	return parseTag(strings.ToUpper(tag))
}
