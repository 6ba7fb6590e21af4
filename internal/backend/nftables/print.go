package nftables

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/instance"
)

// Render writes the table of one family and instance as input for nft -f that replaces the table.
// The output depends only on the table.
func Render(w io.Writer, fam fwd.Family, id instance.ID, t *fwd.Table) error {
	p := printer{lang: lang{fam}, table: id.Table(), objects: objectsOf(fam, t), out: bufio.NewWriter(w)}
	p.print()
	return p.out.Flush()
}

type printer struct {
	lang
	table   string
	objects map[ID]Object
	out     *bufio.Writer
}

func (p *printer) printf(format string, args ...any) {
	fmt.Fprintf(p.out, format, args...) // Flush returns the error
}

func (p *printer) print() {
	p.printf("add table %s %s\ndelete table %s %s\ntable %s %s {\n", p.ip(), p.table, p.ip(), p.table, p.ip(), p.table)
	elements := p.elements()
	for _, s := range staticSets {
		p.set(&s, elements[s.Name])
	}
	for _, id := range sorted(p.objects, KindSet) {
		if _, static := staticSet(id.Name); !static {
			p.ranges(p.objects[id].set)
		}
	}
	for _, id := range sorted(p.objects, KindChain) {
		p.chain(id.Name, p.objects[id].chain)
	}
	p.printf("}\n")
}

// elements returns the elements of each set in the order in which they are printed.
func (p *printer) elements() map[string][]nft.Element {
	out := make(map[string][]nft.Element)
	for _, id := range sorted(p.objects, KindElement) {
		out[id.Name] = append(out[id.Name], nft.Element{Key: id.Key})
	}
	for _, id := range sorted(p.objects, KindFrontend) {
		t, set := targets(p.objects[id].Value), endpointsOf(id.Name)
		out[id.Name] = append(out[id.Name], nft.Element{Key: id.Key, Value: t.verdict()})
		first := len(out[set])
		for i, ep := range t.endpoints(p.family) {
			out[set] = append(out[set], nft.Element{Key: id.Key + i, Value: ep})
		}
		slices.SortFunc(out[set][first:], func(a, b nft.Element) int { return cmp.Compare(numberOf(a), numberOf(b)) })
	}
	return out
}

// numberOf returns the index at the end of a key.
func numberOf(e nft.Element) uint32 {
	return binary.NativeEndian.Uint32([]byte(e.Key[len(e.Key)-indexLen:]))
}

func (p *printer) chain(name string, c *chain) {
	p.printf("\tchain %s {\n", name)
	if b := c.base; b != (nft.Base{}) {
		p.printf("\t\ttype %s hook %s priority %d; policy accept;\n", b.Type, b.Hook, b.Priority)
	}
	for _, r := range c.rules {
		p.printf("\t\t%s\n", r.text)
	}
	p.printf("\t}\n")
}

// field returns the expression that declares the type of a field for nft.
func (p *printer) field(f nft.Field) string {
	switch f {
	case nft.SourceAddr, nft.DestAddr:
		return p.addr(f).text
	case nft.Protocol:
		return protocol().text
	case nft.DestPort:
		return destPort().text
	case nft.SourceLast:
		return p.byteOf(nft.SourceAddr, nft.SourceAddr.Len(p.family)-1).text
	case nft.DestLast:
		return p.byteOf(nft.DestAddr, nft.DestAddr.Len(p.family)-1).text
	}
	return random(nft.NumberModulus, 0).text
}

func (p *printer) fields(fs []nft.Field) string {
	var names []string
	for _, f := range fs {
		names = append(names, p.field(f))
	}
	return strings.Join(names, " . ")
}

func (p *printer) set(s *nft.Set, elements []nft.Element) {
	word, value := "set", ""
	switch {
	case s.Verdicts:
		word, value = "map", " : verdict"
	case len(s.Value) > 0:
		word, value = "map", " : "+p.fields(s.Value)
	}
	p.printf("\t%s %s {\n\t\ttypeof %s%s\n", word, s.Name, p.fields(s.Key), value)
	if s.Size > 0 {
		p.printf("\t\tsize %d\n", s.Size)
	}
	if s.Dynamic {
		p.printf("\t\tflags dynamic,timeout\n")
	}
	if len(elements) > 0 {
		p.printf("\t\telements = {\n")
		for i, e := range elements {
			if s.Name != setEqualBytes || i%8 == 0 {
				p.printf("\t\t\t")
			}
			p.printf("%s", p.data(s.Key, e.Key))
			if s.Verdicts {
				p.printf(" : %s", e.Value)
			} else if len(s.Value) > 0 {
				p.printf(" : %s", p.data(s.Value, e.Value))
			}
			if p.printf(","); s.Name == setEqualBytes && i%8 < 7 {
				p.printf(" ")
			} else {
				p.printf("\n")
			}
		}
		p.printf("\t\t}\n")
	}
	p.printf("\t}\n")
}

func (p *printer) ranges(s *rangeSet) {
	p.printf("\tset %s {\n\t\ttypeof %s\n\t\tflags interval\n\t\telements = {\n", s.Name, p.fields(s.Key))
	for _, r := range s.prefixes {
		if r.IsSingleIP() {
			p.printf("\t\t\t%s,\n", r.Addr())
		} else {
			p.printf("\t\t\t%s,\n", r)
		}
	}
	p.printf("\t\t}\n\t}\n")
}

// data prints a key or a value.
func (p *printer) data(fs []nft.Field, b string) string {
	var parts []string
	for _, f := range fs {
		n := f.Len(p.family)
		v := b[:n]
		switch f {
		case nft.SourceAddr, nft.DestAddr:
			a, _ := netip.AddrFromSlice([]byte(v))
			parts = append(parts, a.String())
		case nft.Protocol:
			parts = append(parts, fwd.Proto(v[0]).String())
		case nft.DestPort:
			parts = append(parts, fmt.Sprint(binary.BigEndian.Uint16([]byte(v))))
		case nft.SourceLast, nft.DestLast:
			parts = append(parts, fmt.Sprintf("%#x", v[0]))
		default:
			parts = append(parts, fmt.Sprint(binary.NativeEndian.Uint32([]byte(v))))
		}
		b = b[min(f.Padded(p.family), len(b)):]
	}
	return strings.Join(parts, " . ")
}
