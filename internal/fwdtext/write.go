package fwdtext

import (
	"bufio"
	"fmt"
	"io"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Write writes the text form of a table. An error is one of w.
func Write(w io.Writer, t *fwd.Table) error {
	b := bufio.NewWriter(w)
	h := t.Header()
	writeLine(b, "header", headerFields(&h))
	var won, lost []*fwd.Frontend
	for f := range t.Fragments() {
		writeLine(b, "service "+formatService(f.Owner), serviceFields(f))
		for i := range f.Frontends {
			fe := &f.Frontends[i]
			if t.Frontend(fe.Key).Owner.Service == f.Owner {
				won = append(won, fe)
			} else {
				lost = append(lost, fe)
			}
		}
	}
	writeFrontends(b, "frontend", won)
	writeFrontends(b, "claim", lost)
	for f := range t.Fragments() {
		for i := range f.Pools {
			writeLine(b, "pool "+formatPort(f.Pools[i].Key.Port), poolFields(&f.Pools[i]))
		}
	}
	for f := range t.Fragments() {
		for i := range f.Serving {
			writeLine(b, "serving "+formatPort(f.Serving[i].Port), servingFields(&f.Serving[i]))
		}
	}
	return b.Flush()
}

// writeFrontends sorts by key. Claims to one key stay in the order of their Services.
func writeFrontends(b *bufio.Writer, word string, frontends []*fwd.Frontend) {
	slices.SortStableFunc(frontends, func(x, y *fwd.Frontend) int { return x.Key.Compare(y.Key) })
	for _, f := range frontends {
		all := f.Routes[fwd.Outside] == f.Routes[fwd.Pod] && f.Routes[fwd.Pod] == f.Routes[fwd.Host]
		writeLine(b, word+" "+f.Key.String(), frontendFields(f, all))
	}
}

func writeLine(b *bufio.Writer, object string, fields []field) {
	b.WriteString(object)
	for _, f := range fields {
		if f.required || f.text != "" {
			fmt.Fprintf(b, " %s=%s", f.name, f.text)
		}
	}
	b.WriteByte('\n')
}
