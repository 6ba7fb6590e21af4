package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Attr is a netlink attribute as it was read.
type Attr = netlink.AttrOf[string]

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
		func() (err error) { out.Exists, err = c.Exists(ctx); return err },
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

// Exists says whether the kernel has the table. A kernel without nf_tables has none.
func (c *Conn) Exists(ctx context.Context) (bool, error) {
	names, err := c.Tables(ctx)
	if errors.Is(err, netlink.ErrInterrupted) {
		err = nil // other tables come and go meanwhile
	}
	return slices.Contains(names, c.table), err
}

// Tables returns the names of all tables of the family. A kernel without nf_tables has none.
func (c *Conn) Tables(ctx context.Context) ([]string, error) {
	var names []string
	err := steady(func() error {
		names = nil
		return c.dump(ctx, unix.NFT_MSG_GETTABLE, netlink.NetfilterHeader(protoFamily(c.family)), func(a attrs) error {
			names = append(names, a[unix.NFTA_TABLE_NAME].Text())
			return nil
		})
	})
	for _, unsupported := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT} {
		if errors.Is(err, unsupported) {
			return nil, nil // nothing in the kernel handles the message
		}
	}
	if err != nil {
		err = fmt.Errorf("list tables: %w", err)
	}
	return names, err
}

// attrs are the attributes of a message by type.
type attrs = map[uint16]Attr

// dump yields the attributes of each message of the answer to a request for a list.
func (c *Conn) dump(ctx context.Context, msg uint16, body []byte, yield func(attrs) error) error {
	req := netlink.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | msg, Body: body}
	err := c.reads.Dump(ctx, req, func(m netlink.Message) error {
		b, err := m.NetfilterAttrs()
		if err != nil {
			return err
		}
		a, err := netlink.AttrMap(string(b))
		if err != nil {
			return err
		}
		return yield(a)
	})
	if err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	return nil
}

// dumpTable is dump for the objects of a kind in the table. Older kernels send those of all tables.
func (c *Conn) dumpTable(ctx context.Context, msg uint16, yield func(attrs) error) error {
	return c.dump(ctx, msg, inTable(c.family, c.table), func(a attrs) error {
		if a[unix.NFTA_TABLE_NAME].Text() != c.table { // it has the same number in all messages
			return nil
		}
		return yield(a)
	})
}

func (c *Conn) readChains(ctx context.Context) (out []Chain, err error) {
	err = c.dumpTable(ctx, unix.NFT_MSG_GETCHAIN, func(a attrs) error {
		hook, err := netlink.AttrMap(a[unix.NFTA_CHAIN_HOOK].Data)
		policy, hasPolicy := a[unix.NFTA_CHAIN_POLICY]
		out = append(out, Chain{Name: a[unix.NFTA_CHAIN_NAME].Text(), Base: Base{
			Type: a[unix.NFTA_CHAIN_TYPE].Text(), Drop: hasPolicy && policy.Net32() == nfDrop,
			Hook: Hook(hook[unix.NFTA_HOOK_HOOKNUM].Net32()), Priority: int32(hook[unix.NFTA_HOOK_PRIORITY].Net32())}})
		return err
	})
	return out, err
}

func (c *Conn) readRules(ctx context.Context, chains []Chain) error {
	byName := make(map[string]int)
	for i := range chains {
		byName[chains[i].Name] = i
		chains[i].Rules = nil
	}
	return c.dumpTable(ctx, unix.NFT_MSG_GETRULE, func(a attrs) error {
		rule, err := parseRule(a[unix.NFTA_RULE_EXPRESSIONS].Data)
		if i, ok := byName[a[unix.NFTA_RULE_CHAIN].Text()]; ok {
			chains[i].Rules = append(chains[i].Rules, rule)
		}
		return err
	})
}

func parseRule(s string) (r Rule, err error) {
	err = netlink.Each(s, func(a Attr) error {
		expr, err := netlink.AttrMap(a.Data)
		if err != nil {
			return err
		}
		x, err := normal(expr[unix.NFTA_EXPR_NAME].Text(), expr[unix.NFTA_EXPR_DATA].Data)
		r = append(r, x)
		return err
	})
	return r, err
}

func (c *Conn) readSets(ctx context.Context) (map[string]Shape, error) {
	out := make(map[string]Shape)
	err := c.dumpTable(ctx, unix.NFT_MSG_GETSET, func(a attrs) error {
		desc, err := netlink.AttrMap(a[unix.NFTA_SET_DESC].Data)
		sh := Shape{
			KeyType: a[unix.NFTA_SET_KEY_TYPE].Net32(), KeyLen: a[unix.NFTA_SET_KEY_LEN].Net32(),
			DataType: a[unix.NFTA_SET_DATA_TYPE].Net32(), DataLen: a[unix.NFTA_SET_DATA_LEN].Net32(),
			Flags: a[unix.NFTA_SET_FLAGS].Net32(), Size: desc[unix.NFTA_SET_DESC_SIZE].Net32(),
		}
		if sh.Verdicts() {
			sh.DataLen = 0 // kernels differ in what they send
		}
		out[a[unix.NFTA_SET_NAME].Text()] = sh
		return err
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
	out := NewElements(sh)
	body := netlink.AppendText(inTable(c.family, c.table), unix.NFTA_SET_ELEM_LIST_SET, set)
	err := c.dump(ctx, unix.NFT_MSG_GETSETELEM, body, func(a attrs) error {
		return netlink.Each(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS].Data, func(a Attr) error {
			el, err := parseElement(sh.Verdicts(), a.Data)
			if err == nil {
				out.Add(el)
			}
			return err
		})
	})
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
