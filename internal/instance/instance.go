package instance

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"strings"
)

// ID identifies an instance in the kernel. The zero ID is the instance without a name. All others
// have at most 25 bits.
type ID uint32

const (
	bits     = 25
	tagBytes = bits / 5 // of base32
)

// Of returns the ID of the instance with that value of --service-proxy-name. An empty value is the
// instance without a name.
func Of(name string) ID {
	if name == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(name))
	return max(1, ID(binary.BigEndian.Uint32(sum[:])>>(32-bits)))
}

// tag is the ID as five characters; empty for the zero ID.
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

// NamedPrefix begins the Prefix of every instance with a name. Names of other programs hardly ever
// begin so.
const NamedPrefix = "FL-"

const (
	unnamedPrefix = "FAIRLEAD-"
	unnamedTable  = "fairlead"
	unnamedDevice = "kube-ipvs0"
	// namedDevice begins like unnamedDevice, because other programs ignore devices whose names
	// begin so.
	namedDevice = "kube-ipvs-"
)

// String is the name of the table: "fairlead", or "fairlead-" and five characters.
func (i ID) String() string { return i.Table() }

// Prefix is the prefix of the names of chains, sets and xt_recent lists. It has nine bytes.
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

// Device is the name of the device with the virtual IPs. It has at most 15 bytes (IFNAMSIZ without
// the final zero).
func (i ID) Device() string {
	if i == 0 {
		return unnamedDevice
	}
	return namedDevice + strings.ToLower(i.tag())
}

// Routing is the number of the instance's routing table and the metric of its routes; 0 for the
// zero ID.
func (i ID) Routing() uint32 {
	if i == 0 {
		return 0
	}
	return 1<<bits | uint32(i)
}

// OfObject returns the instance that a chain or set belongs to.
func OfObject(name string) (ID, bool) {
	if strings.HasPrefix(name, unnamedPrefix) {
		return 0, true
	}
	suffix, named := strings.CutPrefix(name, NamedPrefix)
	tag, _, tagged := strings.Cut(suffix, "-")
	if !named || !tagged {
		return 0, false
	}
	return parseTag(tag)
}

// OfTable returns the instance that a table of nf_tables belongs to.
func OfTable(name string) (ID, bool) { return ofName(name, unnamedTable, unnamedTable+"-") }

// OfDevice returns the instance that a device of virtual IPs belongs to.
func OfDevice(name string) (ID, bool) { return ofName(name, unnamedDevice, namedDevice) }

// ofName reads a name with a tag in lower case.
func ofName(name, unnamed, namedPrefix string) (ID, bool) {
	if name == unnamed {
		return 0, true
	}
	tag, ok := strings.CutPrefix(name, namedPrefix)
	if !ok || tag != strings.ToLower(tag) {
		return 0, false
	}
	return parseTag(strings.ToUpper(tag))
}
