package fwdtext

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Read reads a table from its text form. Empty lines and lines that begin with "#" are skipped. The
// line of a Service comes before its other lines; the order is free otherwise. Everything else is
// strict: an unknown, doubled or missing field and whatever package fwd does not find valid are
// errors, which name the line or the object.
func Read(r io.Reader) (*fwd.Table, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read the text of a table: %w", err)
	}
	d := decoder{services: make(map[fwd.Service]*fwd.Fragment)}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		if err := d.line(words[0], words[1:]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return d.table()
}

// decoder collects the objects of a text.
type decoder struct {
	header   *fwd.Header
	services map[fwd.Service]*fwd.Fragment
	// frontends are those of all Services, with whether another Service owns the key (claim).
	frontends []frontend
}

type frontend struct {
	fwd.Frontend
	claim bool
}

// line reads one object.
func (d *decoder) line(word string, rest []string) error {
	if word == "header" {
		if d.header != nil {
			return fmt.Errorf("a second header")
		}
		d.header = new(fwd.Header)
		return setFields(headerFields(d.header), rest)
	}
	if len(rest) == 0 {
		return fmt.Errorf("%q: want an object and its key", word)
	}
	err := d.object(word, rest[0], rest[1:])
	if err != nil {
		return fmt.Errorf("%s %s: %w", word, rest[0], err)
	}
	return nil
}

func (d *decoder) object(word, key string, rest []string) (err error) {
	switch word {
	case "service":
		f := new(fwd.Fragment)
		if f.Owner, err = parseService(key); err != nil {
			return err
		}
		if d.services[f.Owner] != nil {
			return fmt.Errorf("a second line for this Service")
		}
		d.services[f.Owner] = f
		return setFields(serviceFields(f), rest)
	case "frontend", "claim":
		fe := frontend{claim: word == "claim"}
		if fe.Key, err = parseKey(key); err != nil {
			return err
		}
		all := slices.ContainsFunc(rest, func(s string) bool { return strings.HasPrefix(s, "all=") })
		if err := setFields(frontendFields(&fe.Frontend, all), rest); err != nil {
			return err
		}
		d.frontends = append(d.frontends, fe)
		return d.add(fe.Owner.Service, func(f *fwd.Fragment) { f.Frontends = append(f.Frontends, fe.Frontend) })
	case "pool":
		var p fwd.Pool
		if p.Key.Port, err = parsePort(key); err != nil {
			return err
		}
		if err := setFields(poolFields(&p), rest); err != nil {
			return err
		}
		return d.add(p.Key.Port.Service, func(f *fwd.Fragment) { f.Pools = append(f.Pools, p) })
	case "serving":
		var s fwd.ServingPort
		if s.Port, err = parsePort(key); err != nil {
			return err
		}
		if err := setFields(servingFields(&s), rest); err != nil {
			return err
		}
		return d.add(s.Port.Service, func(f *fwd.Fragment) { f.Serving = append(f.Serving, s) })
	}
	return fmt.Errorf("want header, service, frontend, claim, pool or serving")
}

func (d *decoder) add(owner fwd.Service, to func(*fwd.Fragment)) error {
	f := d.services[owner]
	if f == nil {
		return fmt.Errorf("there is no line for service %s before it", formatService(owner))
	}
	to(f)
	return nil
}

// setFields sets the fields of one object from a line.
func setFields(fields []field, words []string) error {
	todo := make(map[string]field)
	for _, f := range fields {
		todo[f.name] = f
	}
	for _, word := range words {
		name, text, ok := strings.Cut(word, "=")
		if !ok {
			return fmt.Errorf("%q: want field=value", word)
		}
		f, ok := todo[name]
		if !ok {
			return fmt.Errorf("field %q is unknown, or there twice", name)
		}
		if err := f.set(text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		delete(todo, name)
	}
	for _, f := range fields {
		if _, left := todo[f.name]; left && f.required {
			return fmt.Errorf("field %q is missing", f.name)
		}
	}
	return nil
}

// table puts the fragments together and checks what needs more than one line to see.
func (d *decoder) table() (*fwd.Table, error) {
	t := new(fwd.Table)
	if d.header != nil {
		if err := d.header.Validate(); err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		t.SetHeader(*d.header)
	}
	for _, owner := range slices.SortedFunc(maps.Keys(d.services), fwd.Service.Compare) {
		f := d.services[owner]
		slices.SortStableFunc(f.Frontends, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
		slices.SortStableFunc(f.Pools, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
		slices.SortStableFunc(f.Serving, func(a, b fwd.ServingPort) int {
			return cmp.Or(a.Port.Compare(b.Port), cmp.Compare(a.Family, b.Family))
		})
		if err := f.Validate(); err != nil {
			return nil, fmt.Errorf("service %s: %w", formatService(owner), err)
		}
		t.Put(f)
	}
	for _, f := range d.frontends {
		if owner := t.Frontend(f.Key).Owner.Service; (owner != f.Owner.Service) != f.claim {
			return nil, fmt.Errorf("frontend %s of service %s belongs to %s: the words frontend and claim are mixed up",
				f.Key, formatService(f.Owner.Service), formatService(owner))
		}
	}
	return t, nil
}
