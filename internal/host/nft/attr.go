package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const attrHeader = 4

// writer appends netlink messages and attributes to a buffer.
type writer struct{ buf []byte }

func (w *writer) pad() {
	for len(w.buf)%4 != 0 {
		w.buf = append(w.buf, 0)
	}
}

// open begins something whose length, a uint16 at its start, close fills in.
func (w *writer) open(typ uint16) int {
	at := len(w.buf)
	w.buf = binary.NativeEndian.AppendUint16(w.buf, 0)
	w.buf = binary.NativeEndian.AppendUint16(w.buf, typ)
	return at
}

func (w *writer) close(at int) {
	binary.NativeEndian.PutUint16(w.buf[at:], uint16(len(w.buf)-at))
	w.pad()
}

func (w *writer) nest(typ uint16) int { return w.open(typ | unix.NLA_F_NESTED) }

func (w *writer) bytes(typ uint16, b string) {
	at := w.open(typ)
	w.buf = append(w.buf, b...)
	w.close(at)
}

// text writes a string with a zero byte at its end.
func (w *writer) text(typ uint16, s string) {
	at := w.open(typ)
	w.buf = append(append(w.buf, s...), 0)
	w.close(at)
}

func (w *writer) u32(typ uint16, v uint32) {
	at := w.open(typ)
	w.buf = binary.BigEndian.AppendUint32(w.buf, v)
	w.close(at)
}

func (w *writer) u64(typ uint16, v uint64) {
	at := w.open(typ)
	w.buf = binary.BigEndian.AppendUint64(w.buf, v)
	w.close(at)
}

// Attr is a netlink attribute as it was read.
type Attr struct {
	// Type is without the flags for nesting and byte order.
	Type uint16
	Data string
}

// Uint32 reads a number in network byte order; 0 if there is none.
func (a Attr) Uint32() uint32 {
	if len(a.Data) < 4 {
		return 0
	}
	return uint32(a.Data[0])<<24 | uint32(a.Data[1])<<16 | uint32(a.Data[2])<<8 | uint32(a.Data[3])
}

// Text reads a string that ends with a zero byte.
func (a Attr) Text() string {
	for i := range len(a.Data) {
		if a.Data[i] == 0 {
			return a.Data[:i]
		}
	}
	return a.Data
}

// errMalformed says that attributes end in the middle of one.
type errMalformed struct{ left int }

func (e errMalformed) Error() string {
	return fmt.Sprintf("netlink attributes: %d bytes left at the end", e.left)
}

// Attrs yields the attributes that are encoded in s, in order.
func Attrs(s string, yield func(Attr)) error {
	for len(s) >= attrHeader {
		n := int(binary.NativeEndian.Uint16([]byte(s[:2])))
		typ := binary.NativeEndian.Uint16([]byte(s[2:4]))
		if n < attrHeader || n > len(s) {
			return errMalformed{len(s)}
		}
		yield(Attr{Type: typ &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), Data: s[attrHeader:n]})
		s = s[min((n+3)&^3, len(s)):]
	}
	if len(s) > 0 {
		return errMalformed{len(s)}
	}
	return nil
}
