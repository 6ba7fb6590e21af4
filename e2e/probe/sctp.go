package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// SCTP without support of the kernel (RFC 9260): the question is the initiate tag of an INIT; the
// answer is the state cookie of an INIT ACK. This is all that connection tracking needs for a new
// association.

const (
	sctpProto     = "132"
	chunkInit     = 1
	chunkInitAck  = 2
	paramCookie   = 7
	sctpHeaderLen = 12
	// initLen is the length of an INIT or INIT ACK chunk without parameters.
	initLen = 20
)

// sctpPacket has the relevant fields of a packet with one chunk.
type sctpPacket struct {
	src, dst uint16
	// vtag is 0 in an INIT and its initiate tag in the INIT ACK.
	vtag    uint32
	chunk   byte
	initTag uint32
	cookie  string
}

var errNotSCTP = errors.New("not an SCTP packet with an INIT or INIT ACK")

func (p sctpPacket) marshal() []byte {
	b := make([]byte, sctpHeaderLen+initLen)
	binary.BigEndian.PutUint16(b, p.src)
	binary.BigEndian.PutUint16(b[2:], p.dst)
	binary.BigEndian.PutUint32(b[4:], p.vtag)
	c := b[sctpHeaderLen:]
	c[0] = p.chunk
	binary.BigEndian.PutUint32(c[4:], p.initTag)
	binary.BigEndian.PutUint32(c[8:], 65536)
	binary.BigEndian.PutUint16(c[12:], 1)
	binary.BigEndian.PutUint16(c[14:], 1)
	binary.BigEndian.PutUint32(c[16:], p.initTag)
	length := initLen
	if p.cookie != "" {
		b = binary.BigEndian.AppendUint16(b, paramCookie)
		b = binary.BigEndian.AppendUint16(b, uint16(4+len(p.cookie)))
		b = append(b, p.cookie...)
		length += 4 + len(p.cookie)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	binary.BigEndian.PutUint16(b[sctpHeaderLen+2:], uint16(length))
	// Computed with the field zero, and stored little-endian (RFC 9260, appendix A).
	binary.LittleEndian.PutUint32(b[8:], checksum(b))
	return b
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func parseSCTP(b []byte) (sctpPacket, error) {
	if len(b) < sctpHeaderLen+initLen || (b[sctpHeaderLen] != chunkInit && b[sctpHeaderLen] != chunkInitAck) {
		return sctpPacket{}, errNotSCTP
	}
	b = slices.Clone(b)
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:12])
	if got := checksum(b); got != sum {
		return sctpPacket{}, fmt.Errorf("SCTP packet with checksum %08x, want %08x", sum, got)
	}
	p := sctpPacket{
		src: binary.BigEndian.Uint16(b), dst: binary.BigEndian.Uint16(b[2:]), vtag: binary.BigEndian.Uint32(b[4:]),
		chunk: b[sctpHeaderLen], initTag: binary.BigEndian.Uint32(b[sctpHeaderLen+4:]),
	}
	if rest := b[sctpHeaderLen+initLen:]; len(rest) >= 4 && binary.BigEndian.Uint16(rest) == paramCookie {
		if n := int(binary.BigEndian.Uint16(rest[2:])); n >= 4 && n <= len(rest) {
			p.cookie = string(rest[4:n])
		}
	}
	return p, nil
}

func sctpNetwork(a netip.Addr) string {
	if a.Is4() {
		return "ip4:" + sctpProto
	}
	return "ip6:" + sctpProto
}

func ipAddr(a netip.Addr) *net.IPAddr { return &net.IPAddr{IP: a.AsSlice(), Zone: a.Zone()} }

func (s *Server) serveSCTP(in Entrance, at netip.Addr, ports []uint16) error {
	var c *net.IPConn
	err := in.Do(func() (err error) {
		c, err = net.ListenIP(sctpNetwork(at), ipAddr(at))
		return err
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, c.Close)
	s.running.Go(func() {
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFromIP(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			p, err := parseSCTP(buf[:n])
			if err != nil || p.chunk != chunkInit || !slices.Contains(ports, p.dst) {
				continue
			}
			peer, _ := netip.AddrFromSlice(from.IP)
			line := answer(fmt.Sprint(p.initTag), s.name, netip.AddrPortFrom(at, p.dst), netip.AddrPortFrom(peer.Unmap(), p.src))
			reply := sctpPacket{src: p.dst, dst: p.src, vtag: p.initTag, chunk: chunkInitAck, initTag: p.initTag, cookie: line}
			_, _ = c.WriteToIP(reply.marshal(), from)
		}
	})
	return nil
}

// dialSCTP sends an INIT every second and waits for the INIT ACK or an ICMP error. The timeout does
// not include waiting for other exchanges.
func (d *Dialer) dialSCTP(t Target) Result {
	d.sctp.Lock()
	defer d.sctp.Unlock()
	var src *net.IPAddr
	if t.Src.Addr().IsValid() {
		src = ipAddr(t.Src.Addr())
	}
	var c *net.IPConn
	err := d.in.Do(func() (err error) {
		c, err = net.DialIP(sctpNetwork(t.Dst.Addr()), src, ipAddr(t.Dst.Addr()))
		return err
	})
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	end := time.Now().Add(t.timeout())
	ask := sctpPacket{src: t.Src.Port(), dst: t.Dst.Port(), chunk: chunkInit, initTag: rand.Uint32() | 1}
	if ask.src == 0 {
		ask.src = uint16(33000 + rand.IntN(27000))
	}
	for {
		next := time.Now().Add(initAgain)
		if next.After(end) {
			next = end
		}
		if err := c.SetDeadline(next); err != nil {
			return failure(err)
		}
		if _, err := c.Write(ask.marshal()); err != nil && !filtered(err) {
			return failure(err)
		}
		if res := awaitInitAck(c, ask); res.Verdict != Lost || next.Equal(end) {
			return res
		}
	}
}

// initAgain is the interval of retransmissions of an INIT (RTO.Initial of RFC 9260, section 16). On
// a busy machine the kernel sometimes loses a packet, for example while it resolves a neighbour.
const initAgain = time.Second

func awaitInitAck(c *net.IPConn, ask sctpPacket) Result {
	for buf := make([]byte, 512); ; {
		n, _, err := c.ReadFromIP(buf)
		if err != nil {
			return failure(err)
		}
		p, err := parseSCTP(buf[:n])
		if errors.Is(err, errNotSCTP) || (err == nil && (p.dst != ask.src || p.vtag != ask.initTag)) {
			continue
		}
		if err != nil {
			return failure(err)
		}
		if res, ok := parse(strings.TrimSpace(p.cookie), fmt.Sprint(ask.initTag)); ok {
			return res
		}
		return failure(fmt.Errorf("INIT ACK with cookie %q", p.cookie))
	}
}
