package rulesim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// maxBPF is XT_BPF_MAX_NUM_INSTR.
const maxBPF = 64

// The opcodes of classic BPF that are known here; see linux/filter.h.
const (
	ldImm   = 0x00
	ldxImm  = 0x01
	ldWord  = 0x20
	ldHalf  = 0x28
	ldByte  = 0x30
	tax     = 0x07
	txa     = 0x87
	andK    = 0x54
	ja      = 0x05
	jeqK    = 0x15
	jeqX    = 0x1d
	jgtK    = 0x25
	jgeK    = 0x35
	jsetK   = 0x45
	retK    = 0x06
	retA    = 0x16
	dstPort = 2 // offset in the transport header
)

type bpfInstr struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// bpfMatch is -m bpf --bytecode: a program over the packet from its network header on; it matches unless it returns 0.
type bpfMatch struct{ program []bpfInstr }

func (m *bpfMatch) option(a *args, opt string, neg bool) error {
	if opt != "--bytecode" {
		return errUnknown
	}
	s, err := a.next(opt)
	if err != nil {
		return err
	}
	if neg || m.program != nil {
		return errors.New("--bytecode: once, without !")
	}
	m.program, err = parseBPF(s)
	return err
}

// parseBPF reads "count,code jt jf k,..." and refuses what the kernel's checker refuses.
func parseBPF(s string) ([]bpfInstr, error) {
	parts := strings.Split(s, ",")
	n, err := number(parts[0], 16)
	if err != nil || n < 1 || n > maxBPF || int(n) != len(parts)-1 {
		return nil, fmt.Errorf("--bytecode: count %q for %d instructions, at most %d", parts[0], len(parts)-1, maxBPF)
	}
	prog := make([]bpfInstr, n)
	for pc, part := range parts[1:] {
		f := strings.Fields(part)
		if len(f) != 4 {
			return nil, fmt.Errorf("--bytecode: instruction %q", part)
		}
		var v [4]uint64
		for i, bits := range [4]int{16, 8, 8, 32} {
			if v[i], err = number(f[i], bits); err != nil {
				return nil, fmt.Errorf("--bytecode: instruction %q: %w", part, err)
			}
		}
		prog[pc] = bpfInstr{uint16(v[0]), uint8(v[1]), uint8(v[2]), uint32(v[3])}
		if err := prog[pc].check(int(n) - pc - 1); err != nil {
			return nil, fmt.Errorf("--bytecode: instruction %d %q: %w", pc, part, err)
		}
	}
	if last := prog[n-1].code; last != retK && last != retA {
		return nil, errors.New("--bytecode: does not end with a return")
	}
	return prog, nil
}

// check refuses an unknown opcode and a jump behind the end; after is the number of instructions that follow.
func (i bpfInstr) check(after int) error {
	switch i.code {
	case ja:
		if uint64(i.k) >= uint64(after) {
			return errors.New("jumps behind the end")
		}
	case jeqK, jeqX, jgtK, jgeK, jsetK:
		if int(i.jt) >= after || int(i.jf) >= after {
			return errors.New("jumps behind the end")
		}
	case ldWord, ldHalf, ldByte:
		if i.k >= 1<<31 {
			return errors.New("ancillary load")
		}
	case ldImm, ldxImm, tax, txa, andK, retK, retA:
	default:
		return errors.New("unknown opcode")
	}
	return nil
}

func (m *bpfMatch) done(*rule) error {
	if m.program == nil {
		return errors.New("match bpf: --bytecode missing")
	}
	return nil
}

func (m *bpfMatch) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "bpf --bytecode \"%d", len(m.program))
	for _, i := range m.program {
		fmt.Fprintf(&b, ",%d %d %d %d", i.code, i.jt, i.jf, i.k)
	}
	return b.String() + `"`
}

func (m *bpfMatch) matches(w *walk) (float64, error) {
	var a, x uint32
	for pc := 0; ; pc++ {
		i := m.program[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(i.jt)
			} else {
				pc += int(i.jf)
			}
		}
		var err error
		switch i.code {
		case ldImm:
			a = i.k
		case ldxImm:
			x = i.k
		case ldWord:
			a, err = w.load(i.k, 4)
		case ldHalf:
			a, err = w.load(i.k, 2)
		case ldByte:
			a, err = w.load(i.k, 1)
		case tax:
			x = a
		case txa:
			a = x
		case andK:
			a &= i.k
		case ja:
			pc += int(i.k)
		case jeqK:
			jump(a == i.k)
		case jeqX:
			jump(a == x)
		case jgtK:
			jump(a > i.k)
		case jgeK:
			jump(a >= i.k)
		case jsetK:
			jump(a&i.k != 0)
		case retK:
			return certain(i.k != 0)
		case retA:
			return certain(a != 0)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: instruction %d: %w", m, pc, err)
		}
	}
}

// load reads size bytes of the packet. Only what the simulation knows can be read: version and header length (IPv4),
// protocol, addresses and destination port.
func (w *walk) load(offset uint32, size int) (uint32, error) {
	var known [44]bool
	var b [44]byte
	put := func(at int, v ...byte) {
		copy(b[at:], v)
		for i := range v {
			known[at+i] = true
		}
	}
	port := binary.BigEndian.AppendUint16(nil, w.dst.Port())
	if fwd.FamilyOf(w.src) == fwd.IPv4 {
		put(0, 0x45)
		put(9, uint8(w.proto))
		put(12, w.src.AsSlice()...)
		put(16, w.dst.Addr().AsSlice()...)
		put(20+dstPort, port...)
	} else {
		put(6, uint8(w.proto))
		put(8, w.src.AsSlice()...)
		put(24, w.dst.Addr().AsSlice()...)
		put(40+dstPort, port...)
	}
	var v uint32
	for i := uint64(offset); i < uint64(offset)+uint64(size); i++ {
		if i >= uint64(len(b)) || !known[i] {
			return 0, fmt.Errorf("byte %d of the packet is not simulated", i)
		}
		v = v<<8 | uint32(b[i])
	}
	return v, nil
}
