package nft

import (
	"bytes"
	"encoding/binary"
	"sort"
)

// Elements are the elements of one set in compact form, since there may be hundreds of thousands:
// one buffer with records of the same length, each a key, a value and a byte that is 1 for an End.
// Use NewElements, Add, then Sort.
type Elements struct {
	keyLen, valueLen int
	records          []byte
	// verdicts are the different verdicts; a record of a map to verdicts has an index into it as
	// value. numbers is its inverse.
	verdicts []string
	numbers  map[string]uint32
	// CatchAll says that there is an element for all other keys. It has no record.
	CatchAll bool
}

// verdictLen is the length of an index into Elements.verdicts in bytes.
const verdictLen = 4

// NewElements returns empty Elements for a set of that shape.
func NewElements(s Shape) Elements {
	if s.Verdicts() {
		return Elements{keyLen: int(s.KeyLen), valueLen: verdictLen, numbers: make(map[string]uint32)}
	}
	return Elements{keyLen: int(s.KeyLen), valueLen: int(s.DataLen)}
}

func (e *Elements) size() int { return e.keyLen + e.valueLen + 1 }

func (e *Elements) record(i int) []byte { return e.records[i*e.size():][:e.size()] }

// Len returns the number of elements.
func (e *Elements) Len() int { return len(e.records) / e.size() }

// At returns the element with an index from 0 to Len-1.
func (e *Elements) At(i int) Element {
	r := e.record(i)
	out := Element{Key: string(r[:e.keyLen]), End: r[len(r)-1] != 0}
	value := r[e.keyLen : len(r)-1]
	if e.numbers != nil {
		out.Value = e.verdicts[binary.NativeEndian.Uint32(value)]
	} else {
		out.Value = string(value)
	}
	return out
}

// All returns all elements.
func (e *Elements) All() []Element {
	out := make([]Element, e.Len())
	for i := range out {
		out[i] = e.At(i)
	}
	return out
}

// Add adds an element. One without a key is the element for all other keys (CatchAll).
func (e *Elements) Add(el Element) {
	if el.Key == "" {
		e.CatchAll = true
		return
	}
	at := len(e.records)
	e.records = append(e.records, make([]byte, e.size())...)
	r := e.records[at:]
	copy(r[:e.keyLen], el.Key)
	if e.numbers != nil {
		n, ok := e.numbers[el.Value]
		if !ok {
			n = uint32(len(e.verdicts))
			e.verdicts, e.numbers[el.Value] = append(e.verdicts, el.Value), n
		}
		binary.NativeEndian.PutUint32(r[e.keyLen:], n)
	} else {
		copy(r[e.keyLen:], el.Value)
	}
	if el.End {
		r[len(r)-1] = 1
	}
}

// Join adds the elements of a set of the same shape.
func (e *Elements) Join(o Elements) {
	for i := range o.Len() {
		e.Add(o.At(i))
	}
	e.CatchAll = e.CatchAll || o.CatchAll
}

// Sort sorts by key, an element with End after one without, and removes duplicates. It reports
// whether there were any.
func (e *Elements) Sort() (doubles bool) {
	sort.Sort(&byKey{e, make([]byte, e.size())})
	kept := 0
	for i := range e.Len() {
		if kept > 0 && e.compare(kept-1, i) == 0 {
			doubles = true
			continue
		}
		copy(e.record(kept), e.record(i))
		kept++
	}
	e.records = e.records[:kept*e.size()]
	return doubles
}

func (e *Elements) compare(i, j int) int {
	a, b := e.record(i), e.record(j)
	if d := bytes.Compare(a[:e.keyLen], b[:e.keyLen]); d != 0 {
		return d
	}
	return int(a[len(a)-1]) - int(b[len(b)-1])
}

// byKey sorts Elements in place.
type byKey struct {
	*Elements
	spare []byte
}

func (s *byKey) Less(i, j int) bool { return s.compare(i, j) < 0 }

func (s *byKey) Swap(i, j int) {
	a, b := s.record(i), s.record(j)
	copy(s.spare, a)
	copy(a, b)
	copy(b, s.spare)
}
