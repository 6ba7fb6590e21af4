package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// attempts is how often something is read that changes all the time.
const attempts = 5

// steady reads until nothing changes meanwhile, or moves: a hash table of the kernel that grows meanwhile gives some elements
// twice and others not at all.
func steady(read func() error) error {
	var err error
	for range attempts {
		if err = read(); !errors.Is(err, netlink.ErrInterrupted) {
			return err
		}
	}
	return err
}

// Read implements Interface. Where others write to large sets all the time, what it returns of these is what was met in
// any of several readings.
func (c *Conn) Read(ctx context.Context) (Content, error) {
	out := Content{Elements: make(map[string]Elements)}
	reads := []func() error{
		func() (err error) { out.Exists, err = c.exists(ctx); return err },
		func() (err error) { out.Chains, err = c.readChains(ctx); return err },
		func() error { return c.readRules(ctx, out.Chains) },
		func() (err error) { out.Sets, err = c.readSets(ctx); return err },
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
func (c *Conn) Exists(ctx context.Context) (bool, error) {
	there, err := c.exists(ctx)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil // nobody in the kernel takes the message
	}
	if errors.Is(err, netlink.ErrInterrupted) {
		return there, nil // other tables come and go meanwhile
	}
	if err != nil {
		return false, fmt.Errorf("look for nf_tables table %s: %w", c.table, err)
	}
	return there, nil
}

func (c *Conn) exists(ctx context.Context) (there bool, err error) {
	err = c.dump(ctx, unix.NFT_MSG_GETTABLE, nil, func(a Attr) error {
		there = there || a.Type == unix.NFTA_TABLE_NAME && a.Text() == c.table
		return nil
	}, nil)
	return there, err
}

// sizeofGenmsg is the header of netfilter's messages: family, version, resource.
const sizeofGenmsg = 4

// dump asks for all objects of a kind. It yields their attributes and calls next, unless that is nil, after those of each.
func (c *Conn) dump(ctx context.Context, msg uint16, request func(*writer), yield func(Attr) error, next func()) error {
	w := writer{buf: []byte{protoFamily(c.family), unix.NFNETLINK_V0, 0, 0}}
	if request != nil {
		request(&w)
	}
	req := netlink.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | msg, Body: w.buf}
	err := c.reads.Dump(ctx, req, func(m netlink.Message) error {
		if len(m.Body) < sizeofGenmsg {
			return netlink.ErrMalformed
		}
		if err := netlink.Each(string(m.Body[sizeofGenmsg:]), yield); err != nil {
			return err
		}
		if next != nil {
			next()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	return nil
}

func (c *Conn) readChains(ctx context.Context) (out []Chain, err error) {
	var ch Chain
	var table string
	err = c.dump(ctx, unix.NFT_MSG_GETCHAIN, nil, func(a Attr) error {
		switch a.Type {
		case unix.NFTA_CHAIN_TABLE:
			table = a.Text()
		case unix.NFTA_CHAIN_NAME:
			ch.Name = a.Text()
		case unix.NFTA_CHAIN_TYPE:
			ch.Base.Type = a.Text()
		case unix.NFTA_CHAIN_POLICY:
			ch.Base.Drop = a.Net32() == nfDrop
		case unix.NFTA_CHAIN_HOOK:
			return netlink.Each(a.Data, func(a Attr) error {
				switch a.Type {
				case unix.NFTA_HOOK_HOOKNUM:
					ch.Base.Hook = Hook(a.Net32())
				case unix.NFTA_HOOK_PRIORITY:
					ch.Base.Priority = int32(a.Net32())
				}
				return nil
			})
		}
		return nil
	}, func() {
		if table == c.table {
			out = append(out, ch)
		}
		ch, table = Chain{}, ""
	})
	return out, err
}

func (c *Conn) readRules(ctx context.Context, chains []Chain) error {
	byName := make(map[string]int)
	for i := range chains {
		byName[chains[i].Name] = i
		chains[i].Rules = nil
	}
	request := func(w *writer) { w.text(unix.NFTA_RULE_TABLE, c.table) }
	var table, chain string
	var rule Rule
	return c.dump(ctx, unix.NFT_MSG_GETRULE, request, func(a Attr) (err error) {
		switch a.Type {
		case unix.NFTA_RULE_TABLE:
			table = a.Text()
		case unix.NFTA_RULE_CHAIN:
			chain = a.Text()
		case unix.NFTA_RULE_EXPRESSIONS:
			rule, err = parseRule(a.Data)
		}
		return err
	}, func() {
		if i, ok := byName[chain]; ok && table == c.table {
			chains[i].Rules = append(chains[i].Rules, rule)
		}
		table, chain, rule = "", "", nil
	})
}

func parseRule(s string) (r Rule, err error) {
	err = netlink.Each(s, func(a Attr) error {
		var name, attrs string
		err := netlink.Each(a.Data, func(a Attr) error {
			switch a.Type {
			case unix.NFTA_EXPR_NAME:
				name = a.Text()
			case unix.NFTA_EXPR_DATA:
				attrs = a.Data
			}
			return nil
		})
		if err != nil {
			return err
		}
		x, err := normal(name, attrs)
		r = append(r, x)
		return err
	})
	return r, err
}

func (c *Conn) readSets(ctx context.Context) (map[string]Shape, error) {
	out := make(map[string]Shape)
	request := func(w *writer) { w.text(unix.NFTA_SET_TABLE, c.table) }
	var name, table string
	var sh Shape
	err := c.dump(ctx, unix.NFT_MSG_GETSET, request, func(a Attr) error {
		switch a.Type {
		case unix.NFTA_SET_TABLE:
			table = a.Text()
		case unix.NFTA_SET_NAME:
			name = a.Text()
		case unix.NFTA_SET_FLAGS:
			sh.Flags = a.Net32()
		case unix.NFTA_SET_KEY_TYPE:
			sh.KeyType = a.Net32()
		case unix.NFTA_SET_KEY_LEN:
			sh.KeyLen = a.Net32()
		case unix.NFTA_SET_DATA_TYPE:
			sh.DataType = a.Net32()
		case unix.NFTA_SET_DATA_LEN:
			sh.DataLen = a.Net32()
		case unix.NFTA_SET_DESC:
			return netlink.Each(a.Data, func(a Attr) error {
				if a.Type == unix.NFTA_SET_DESC_SIZE {
					sh.Size = a.Net32()
				}
				return nil
			})
		}
		return nil
	}, func() {
		if sh.DataType == dataVerdict {
			sh.DataLen = 0 // kernels differ in what they say of it
		}
		if table == c.table {
			out[name] = sh
		}
		name, table, sh = "", "", Shape{}
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
		els, err := c.dumpElements(ctx, set, sh)
		if err != nil && !errors.Is(err, netlink.ErrInterrupted) {
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

func (c *Conn) dumpElements(ctx context.Context, set string, sh Shape) (Elements, error) {
	request := func(w *writer) {
		w.text(unix.NFTA_SET_ELEM_LIST_TABLE, c.table)
		w.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	}
	out := NewElements(sh)
	err := c.dump(ctx, unix.NFT_MSG_GETSETELEM, request, func(a Attr) error {
		if a.Type != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return netlink.Each(a.Data, func(a Attr) error {
			el, err := parseElement(sh.Verdicts(), a.Data)
			if err == nil {
				out.Add(el)
			}
			return err
		})
	}, nil)
	return out, err
}

func parseElement(verdicts bool, s string) (el Element, err error) {
	value := func(s string) (v string, err error) {
		err = netlink.Each(s, func(a Attr) error { v = a.Data; return nil })
		return v, err
	}
	err = netlink.Each(s, func(a Attr) (err error) {
		switch a.Type {
		case unix.NFTA_SET_ELEM_FLAGS:
			el.End = a.Net32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_KEY:
			el.Key, err = value(a.Data)
		case unix.NFTA_SET_ELEM_DATA:
			if verdicts {
				el.Value, err = ParseVerdict(a.Data)
			} else {
				el.Value, err = value(a.Data)
			}
		}
		return err
	})
	return el, err
}
