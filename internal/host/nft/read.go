package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errChanged says that something was written while it was read, or moved: a hash table of the kernel that grows meanwhile
// gives some elements twice and others not at all.
var errChanged = errors.New("nf_tables changes while it is read")

// attempts is how often something is read that changes all the time.
const attempts = 5

// steady reads until nothing changes meanwhile.
func steady(read func() error) error {
	var err error
	for range attempts {
		if err = read(); !errors.Is(err, errChanged) {
			return err
		}
	}
	return err
}

// Read implements Interface. Where others write to large sets all the time, what it returns of these is what was met in
// any of several readings.
func (c *Conn) Read(ctx context.Context) (Content, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	out := Content{Elements: make(map[string]Elements)}
	reads := []func() error{
		func() (err error) { out.Exists, err = c.exists(); return err },
		func() (err error) { out.Chains, err = c.readChains(); return err },
		func() error { return c.readRules(out.Chains) },
		func() (err error) { out.Sets, err = c.readSets(); return err },
	}
	for i, read := range reads {
		if i > 0 && !out.Exists {
			break
		}
		err := ctx.Err()
		if err == nil {
			err = steady(read)
		}
		if err != nil {
			return Content{}, fmt.Errorf("read nf_tables table %s: %w", c.table, err)
		}
	}
	for name, s := range out.Sets {
		if s.Dynamic() {
			continue
		}
		els, err := c.readElements(ctx, name, s)
		if err != nil {
			return Content{}, fmt.Errorf("read nf_tables table %s, set %s: %w", c.table, name, err)
		}
		out.Elements[name] = els
	}
	return out, nil
}

// Exists says whether the kernel has the table. One without nf_tables has none.
func (c *Conn) Exists() (bool, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	there, err := c.exists()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil // nobody in the kernel takes the message
	}
	if errors.Is(err, errChanged) {
		return there, nil // other tables come and go meanwhile
	}
	if err != nil {
		return false, fmt.Errorf("look for nf_tables table %s: %w", c.table, err)
	}
	return there, nil
}

func (c *Conn) exists() (there bool, err error) {
	err = c.dump(unix.NFT_MSG_GETTABLE, nil, func(s string) error {
		return Attrs(s, func(a Attr) {
			if a.Type == unix.NFTA_TABLE_NAME && a.Text() == c.table {
				there = true
			}
		})
	})
	return there, err
}

// dump asks for all objects of a kind and yields their attributes.
func (c *Conn) dump(msg uint16, request func(*encoder), yield func(string) error) error {
	e := encoder{family: c.family, table: c.table}
	at := e.message(msg, unix.NLM_F_DUMP, nil)
	if request != nil {
		request(&e)
	}
	e.end(at)
	if err := c.reads.send(e.buf); err != nil {
		return fmt.Errorf("ask nf_tables: %w", err)
	}
	buf := make([]byte, receiveBuffer/4)
	changed, done := false, false
	for !done {
		n, _, err := unix.Recvfrom(int(c.reads), buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("answer of nf_tables: %w", err)
		}
		err = messages(buf[:n], func(m message) error {
			changed = changed || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case m.typ == unix.NLMSG_DONE:
				done = true
			case m.typ == unix.NLMSG_ERROR:
				done = true
				if errno := -int32(binary.NativeEndian.Uint32(m.body)); errno != 0 {
					return &Error{Errno: unix.Errno(errno), Text: m.explanation()}
				}
			case len(m.body) >= 4:
				return yield(string(m.body[4:]))
			}
			return nil
		})
		if errors.Is(err, unix.EINTR) {
			changed = true
		} else if err != nil {
			return err
		}
	}
	if changed {
		return errChanged
	}
	return nil
}

func (c *Conn) readChains() (out []Chain, err error) {
	err = c.dump(unix.NFT_MSG_GETCHAIN, nil, func(s string) error {
		var ch Chain
		var table string
		var inner error
		err := Attrs(s, func(a Attr) {
			switch a.Type {
			case unix.NFTA_CHAIN_TABLE:
				table = a.Text()
			case unix.NFTA_CHAIN_NAME:
				ch.Name = a.Text()
			case unix.NFTA_CHAIN_TYPE:
				ch.Base.Type = a.Text()
			case unix.NFTA_CHAIN_POLICY:
				ch.Base.Drop = a.Uint32() == nfDrop
			case unix.NFTA_CHAIN_HOOK:
				inner = Attrs(a.Data, func(a Attr) {
					switch a.Type {
					case unix.NFTA_HOOK_HOOKNUM:
						ch.Base.Hook = Hook(a.Uint32())
					case unix.NFTA_HOOK_PRIORITY:
						ch.Base.Priority = int32(a.Uint32())
					}
				})
			}
		})
		if table == c.table {
			out = append(out, ch)
		}
		return errors.Join(err, inner)
	})
	return out, err
}

func (c *Conn) readRules(chains []Chain) error {
	byName := make(map[string]int)
	for i := range chains {
		byName[chains[i].Name] = i
		chains[i].Rules = nil
	}
	request := func(e *encoder) { e.text(unix.NFTA_RULE_TABLE, c.table) }
	return c.dump(unix.NFT_MSG_GETRULE, request, func(s string) error {
		var table, chain string
		var rule Rule
		var inner error
		err := Attrs(s, func(a Attr) {
			switch a.Type {
			case unix.NFTA_RULE_TABLE:
				table = a.Text()
			case unix.NFTA_RULE_CHAIN:
				chain = a.Text()
			case unix.NFTA_RULE_EXPRESSIONS:
				rule, inner = parseRule(a.Data)
			}
		})
		if i, ok := byName[chain]; ok && table == c.table {
			chains[i].Rules = append(chains[i].Rules, rule)
		}
		return errors.Join(err, inner)
	})
}

func parseRule(s string) (Rule, error) {
	var r Rule
	var errs []error
	err := Attrs(s, func(a Attr) {
		var name, attrs string
		errs = append(errs, Attrs(a.Data, func(a Attr) {
			switch a.Type {
			case unix.NFTA_EXPR_NAME:
				name = a.Text()
			case unix.NFTA_EXPR_DATA:
				attrs = a.Data
			}
		}))
		x, err := normal(name, attrs)
		r, errs = append(r, x), append(errs, err)
	})
	return r, errors.Join(append(errs, err)...)
}

func (c *Conn) readSets() (map[string]Shape, error) {
	out := make(map[string]Shape)
	request := func(e *encoder) { e.text(unix.NFTA_SET_TABLE, c.table) }
	err := c.dump(unix.NFT_MSG_GETSET, request, func(s string) error {
		var name, table string
		var sh Shape
		var inner error
		err := Attrs(s, func(a Attr) {
			switch a.Type {
			case unix.NFTA_SET_TABLE:
				table = a.Text()
			case unix.NFTA_SET_NAME:
				name = a.Text()
			case unix.NFTA_SET_FLAGS:
				sh.Flags = a.Uint32()
			case unix.NFTA_SET_KEY_TYPE:
				sh.KeyType = a.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				sh.KeyLen = a.Uint32()
			case unix.NFTA_SET_DATA_TYPE:
				sh.DataType = a.Uint32()
			case unix.NFTA_SET_DATA_LEN:
				sh.DataLen = a.Uint32()
			case unix.NFTA_SET_DESC:
				inner = Attrs(a.Data, func(a Attr) {
					if a.Type == unix.NFTA_SET_DESC_SIZE {
						sh.Size = a.Uint32()
					}
				})
			}
		})
		if sh.DataType == dataVerdict {
			sh.DataLen = 0 // kernels differ in what they say of it
		}
		if table == c.table {
			out[name] = sh
		}
		return errors.Join(err, inner)
	})
	return out, err
}

// readElements reads the elements of a set. If there is no reading without a change meanwhile, it joins those that it has.
func (c *Conn) readElements(ctx context.Context, set string, sh Shape) (Elements, error) {
	met := NewElements(sh)
	for range attempts {
		if err := ctx.Err(); err != nil {
			return Elements{}, err
		}
		els, err := c.dumpElements(set, sh)
		if err != nil && !errors.Is(err, errChanged) {
			return Elements{}, err
		}
		if doubles := els.Sort(); err == nil && !doubles {
			return els, nil
		}
		met.Join(els)
		met.Sort()
	}
	return met, nil
}

func (c *Conn) dumpElements(set string, sh Shape) (Elements, error) {
	request := func(e *encoder) {
		e.text(unix.NFTA_SET_ELEM_LIST_TABLE, c.table)
		e.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	}
	out := NewElements(sh)
	err := c.dump(unix.NFT_MSG_GETSETELEM, request, func(s string) error {
		var errs []error
		err := Attrs(s, func(a Attr) {
			if a.Type == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				errs = append(errs, Attrs(a.Data, func(a Attr) {
					el, err := parseElement(sh.Verdicts(), a.Data)
					out.Add(el)
					if err != nil {
						errs = append(errs, err)
					}
				}))
			}
		})
		return errors.Join(append(errs, err)...)
	})
	return out, err
}

func parseElement(verdicts bool, s string) (Element, error) {
	var el Element
	value := func(s string) (v string, err error) {
		err = Attrs(s, func(a Attr) { v = a.Data })
		return v, err
	}
	var errs [3]error
	errs[2] = Attrs(s, func(a Attr) {
		switch a.Type {
		case unix.NFTA_SET_ELEM_FLAGS:
			el.End = a.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_KEY:
			el.Key, errs[0] = value(a.Data)
		case unix.NFTA_SET_ELEM_DATA:
			if verdicts {
				el.Value, errs[1] = ParseVerdict(a.Data)
			} else {
				el.Value, errs[1] = value(a.Data)
			}
		}
	})
	return el, errors.Join(errs[:]...)
}
