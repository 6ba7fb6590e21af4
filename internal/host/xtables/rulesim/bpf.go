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

// The opcodes of classic BPF that are simulated: those of xtables.SourceIsDestination. See
// linux/filter.h.
const (
	ldWord = 0x20
	tax    = 0x07
	jeqX   = 0x1d
	retK   = 0x06
)

type bpfInstr struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// bpfMatch is -m bpf --bytecode: a program that reads the packet from its network header on. It
// matches unless it returns 0.
type bpfMatch struct {
	plain
	program []bpfInstr
}

func (m *bpfMatch) options(fwd.Family) []option {
	return []option{{name: "--bytecode", words: 1, required: true, set: func(s string, _ bool) (err error) {
		m.program, err = parseBPF(s)
		return err
	}}}
}

// parseBPF reads "count,code jt jf k,..." and refuses what the kernel's checker refuses.
func parseBPF(s string) ([]bpfInstr, error) {
	parts := strings.Split(s, ",")
	n, err := number(parts[0], 16)
	if err != nil || n < 1 || n > maxBPF || int(n) != len(parts)-1 {
		return nil, fmt.Errorf("count %q for %d instructions, at most %d", parts[0], len(parts)-1, maxBPF)
	}
	prog := make([]bpfInstr, n)
	for pc, part := range parts[1:] {
		f := strings.Fields(part)
		if len(f) != 4 {
			return nil, fmt.Errorf("instruction %q", part)
		}
		var v [4]uint64
		for i, bits := range [4]int{16, 8, 8, 32} {
			if v[i], err = number(f[i], bits); err != nil {
				return nil, fmt.Errorf("instruction %q: %w", part, err)
			}
		}
		prog[pc] = bpfInstr{uint16(v[0]), uint8(v[1]), uint8(v[2]), uint32(v[3])}
		if err := prog[pc].check(int(n) - pc - 1); err != nil {
			return nil, fmt.Errorf("instruction %d %q: %w", pc, part, err)
		}
	}
	if prog[n-1].code != retK {
		return nil, errors.New("does not end with a return")
	}
	return prog, nil
}

// check refuses an unknown opcode and a jump past the end. after is the number of instructions that
// follow.
func (i bpfInstr) check(after int) error {
	switch i.code {
	case jeqX:
		if int(i.jt) >= after || int(i.jf) >= after {
			return errors.New("jumps past the end")
		}
	case ldWord, tax, retK:
	default:
		return errors.New("unknown opcode")
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
		switch i.code {
		case ldWord:
			var err error
			if a, err = w.load(i.k); err != nil {
				return 0, fmt.Errorf("%s: instruction %d: %w", m, pc, err)
			}
		case tax:
			x = a
		case jeqX:
			if a == x {
				pc += int(i.jt)
			} else {
				pc += int(i.jf)
			}
		case retK:
			return certain(i.k != 0)
		}
	}
}

// load reads four bytes of the packet. Only its two addresses are simulated.
func (w *walk) load(offset uint32) (uint32, error) {
	first := uint32(12) // where the source address begins; the destination follows it
	if w.rs.family == fwd.IPv6 {
		first = 8
	}
	addrs := append(w.src.AsSlice(), w.dst.Addr().AsSlice()...)
	if offset < first || uint64(offset-first)+4 > uint64(len(addrs)) {
		return 0, fmt.Errorf("byte %d of the packet is not simulated", offset)
	}
	return binary.BigEndian.Uint32(addrs[offset-first:]), nil
}
