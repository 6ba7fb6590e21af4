package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrMalformed means that the kernel sent something that is not netlink.
var ErrMalformed = errors.New("malformed netlink message")

// Request is one netlink message to the kernel.
type Request struct {
	// Type is RTM_NEWADDR and the like, the id of a generic netlink family, or a netfilter
	// subsystem and command.
	Type uint16
	// Flags are added to NLM_F_REQUEST. NLM_F_ACK and NLM_F_DUMP are not for the caller to set.
	Flags uint16
	// Body is what follows the netlink header.
	Body []byte
}

// netfilterHeader is the length of the header of nfnetlink's messages: family, version, resource.
const netfilterHeader = 4

// NetfilterHeader begins the body of a request to nfnetlink; family is unix.NFPROTO_IPV4 or
// unix.NFPROTO_IPV6.
func NetfilterHeader(family uint8) []byte {
	return []byte{family, unix.NFNETLINK_V0, 0, 0}
}

// Message is one netlink message from the kernel.
type Message struct {
	Type, Flags uint16
	Seq         uint32
	// Port is the address of the socket whose request caused the message, 0 for none.
	Port uint32
	// Body is what follows the netlink header.
	Body []byte
}

// NetfilterAttrs returns the attributes of a message of nfnetlink, encoded.
func (m Message) NetfilterAttrs() ([]byte, error) {
	if len(m.Body) < netfilterHeader {
		return nil, ErrMalformed
	}
	return m.Body[netfilterHeader:], nil
}

// clone returns a Message with a copy of the body.
func (m Message) clone() Message {
	m.Body = append([]byte(nil), m.Body...)
	return m
}

// Error is an error that the kernel answered.
type Error struct {
	// Errno is the kernel's number. Numbers from 4096 on are specific to a subsystem.
	Errno unix.Errno
	// Text is the kernel's explanation, often empty.
	Text string
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%v (%s)", e.Errno, e.Text)
}

// Unwrap returns the number, so that errors.Is(err, unix.EEXIST) works.
func (e *Error) Unwrap() error { return e.Errno }

func align(n int) int { return (n + 3) &^ 3 }

func (r Request) size() int { return align(unix.NLMSG_HDRLEN + len(r.Body)) }

// Size is the size of requests as messages in bytes.
func Size(reqs []Request) (n int) {
	for _, r := range reqs {
		n += r.size()
	}
	return n
}

// append appends the request as a message.
func (r Request) append(b []byte, flags uint16, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(r.Body)))
	b = binary.NativeEndian.AppendUint16(b, r.Type)
	b = binary.NativeEndian.AppendUint16(b, r.Flags|flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return pad(append(b, r.Body...), len(r.Body))
}

// pad pads to a multiple of four after n bytes.
func pad(b []byte, n int) []byte {
	for ; n%4 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

// Messages yields the messages of a datagram. Their bodies are slices of b.
func Messages(b []byte) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for len(b) > 0 {
			if len(b) < unix.NLMSG_HDRLEN {
				yield(Message{}, ErrMalformed)
				return
			}
			n := binary.NativeEndian.Uint32(b)
			if n < unix.NLMSG_HDRLEN || uint64(n) > uint64(len(b)) {
				yield(Message{}, ErrMalformed)
				return
			}
			m := Message{
				Type: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq: binary.NativeEndian.Uint32(b[8:]), Port: binary.NativeEndian.Uint32(b[12:]), Body: b[unix.NLMSG_HDRLEN:n:n],
			}
			if !yield(m, nil) {
				return
			}
			b = b[min(align(int(n)), len(b)):]
		}
	}
}

// nlmsgerrMessage is the attribute with the kernel's explanation of an error (NLMSGERR_ATTR_MSG).
const nlmsgerrMessage = 1

// err returns the error in a message of type NLMSG_ERROR or NLMSG_DONE, nil if there is none.
func (m Message) err() (*Error, error) {
	if len(m.Body) < 4 {
		if m.Type == unix.NLMSG_DONE {
			return nil, nil
		}
		return nil, ErrMalformed
	}
	code := int32(binary.NativeEndian.Uint32(m.Body))
	if code == 0 || code > 0 && m.Type == unix.NLMSG_DONE { // the end of a dump may carry a length
		return nil, nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	if m.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return e, nil
	}
	// In an error the header of the request comes first, and the whole request if it is not capped.
	skip := 4
	if m.Type == unix.NLMSG_ERROR {
		skip += unix.NLMSG_HDRLEN
		if m.Flags&unix.NLM_F_CAPPED == 0 && len(m.Body) >= 8 {
			skip = 4 + align(int(binary.NativeEndian.Uint32(m.Body[4:])))
		}
	}
	if skip < 0 || skip > len(m.Body) {
		return e, nil
	}
	for a, err := range Attrs(m.Body[skip:]) {
		if err == nil && a.Type == nlmsgerrMessage {
			e.Text = a.Text()
		}
	}
	return e, nil
}

const attrHeader = 4

// AppendAttr appends an attribute to b. The length of b must be a multiple of four.
func AppendAttr(b []byte, typ uint16, data ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad(append(b, data...), len(data))
}

// AppendText appends an attribute with a string and a zero byte.
func AppendText(b []byte, typ uint16, s string) []byte {
	return AppendAttr(b, typ, append([]byte(s), 0)...)
}

// AppendRaw appends an attribute with the bytes of a string.
func AppendRaw(b []byte, typ uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(s)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad(append(b, s...), len(s))
}

// AppendUint32 appends an attribute with a number in the byte order of the machine, as rtnetlink
// and generic netlink want.
func AppendUint32(b []byte, typ uint16, v uint32) []byte {
	var data [4]byte
	binary.NativeEndian.PutUint32(data[:], v)
	return AppendAttr(b, typ, data[:]...)
}

// AppendNet32 appends an attribute with a number in network byte order, as netfilter wants.
func AppendNet32(b []byte, typ uint16, v uint32) []byte {
	var data [4]byte
	binary.BigEndian.PutUint32(data[:], v)
	return AppendAttr(b, typ, data[:]...)
}

// AppendNet16 is AppendNet32 for a number of 16 bits.
func AppendNet16(b []byte, typ uint16, v uint16) []byte {
	return AppendAttr(b, typ, byte(v>>8), byte(v))
}

// AppendNest appends an attribute that contains the attributes that fill appends.
func AppendNest(b []byte, typ uint16, fill func([]byte) []byte) []byte {
	at := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = fill(binary.NativeEndian.AppendUint16(b, typ|unix.NLA_F_NESTED))
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	return b
}

// bytes holds encoded attributes.
type bytes interface{ ~[]byte | ~string }

// AttrOf is an attribute that was read.
type AttrOf[T bytes] struct {
	// Type has no flags for nesting and byte order.
	Type uint16
	Data T
}

// Attr is an attribute in a message.
type Attr = AttrOf[[]byte]

// Text decodes a string that ends with a zero byte.
func (a AttrOf[T]) Text() string {
	s, _, _ := strings.Cut(string(a.Data), "\x00")
	return s
}

// Host32 decodes a number in the byte order of the machine, as rtnetlink and generic netlink send
// it; 0 if there is none.
func (a AttrOf[T]) Host32() uint32 {
	if len(a.Data) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32([]byte(a.Data[:4]))
}

// Net32 decodes a number in network byte order, as netfilter sends it; 0 if there is none.
func (a AttrOf[T]) Net32() uint32 {
	if len(a.Data) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32([]byte(a.Data[:4]))
}

// Attrs yields the attributes in b, in order.
func Attrs[T bytes](b T) iter.Seq2[AttrOf[T], error] {
	return func(yield func(AttrOf[T], error) bool) {
		for len(b) > 0 {
			n := 0
			if len(b) >= attrHeader {
				n = int(binary.NativeEndian.Uint16([]byte(b[:2])))
			}
			if n < attrHeader || n > len(b) {
				yield(AttrOf[T]{}, ErrMalformed)
				return
			}
			typ := binary.NativeEndian.Uint16([]byte(b[2:4])) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(AttrOf[T]{Type: typ, Data: b[attrHeader:n]}, nil) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// AttrMap returns the attributes in b by type, the last one of each.
func AttrMap[T bytes](b T) (map[uint16]AttrOf[T], error) {
	m := make(map[uint16]AttrOf[T])
	for a, err := range Attrs(b) {
		if err != nil {
			return nil, err
		}
		m[a.Type] = a
	}
	return m, nil
}

// Each calls f for the attributes in b, in order, until it returns an error.
func Each[T bytes](b T, f func(AttrOf[T]) error) error {
	for a, err := range Attrs(b) {
		if err == nil {
			err = f(a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
