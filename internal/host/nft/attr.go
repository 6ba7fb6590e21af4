package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

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
type Attr = netlink.AttrOf[string]
