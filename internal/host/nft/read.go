package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Attr is a netlink attribute that was read.
type Attr = netlink.AttrOf[string]

// attrs are the attributes of a message by type.
type attrs = map[uint16]Attr

// Read implements Interface. If others write to large sets all the time, it returns all elements
// that it met in several attempts to read them.
func (c *Conn) Read(ctx context.Context) (Content, error) {
	out := Content{Elements: make(map[string]Elements)}
	var err error
	if out.Exists, err = c.Exists(ctx); err != nil || !out.Exists {
		return Content{}, err
	}
	if out.Chains, err = c.readChains(ctx); err == nil {
		out.Sets, err = c.readSets(ctx)
	}
	if err != nil {
		return Content{}, fmt.Errorf("read nf_tables table %s: %w", c.table, err)
	}
	for name, s := range out.Sets {
		if s.Dynamic() {
			continue
		}
		if out.Elements[name], err = c.readElements(ctx, name, s); err != nil {
			return Content{}, fmt.Errorf("read nf_tables table %s, set %s: %w", c.table, name, err)
		}
	}
	return out, nil
}

// Exists reports whether the kernel has the table. A kernel without nf_tables has none.
func (c *Conn) Exists(ctx context.Context) (bool, error) {
	names, err := c.Tables(ctx)
	return slices.Contains(names, c.table), err
}

// Tables returns the names of all tables of the family. A kernel without nf_tables has none.
func (c *Conn) Tables(ctx context.Context) (names []string, err error) {
	tables, err := c.list(ctx, unix.NFT_MSG_GETTABLE, netlink.NetfilterHeader(protoFamily(c.family)))
	for _, unsupported := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT} {
		if errors.Is(err, unsupported) {
			return nil, nil // nothing in the kernel handles the message
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list tables of nf_tables: %w", err)
	}
	for _, a := range tables {
		names = append(names, a[unix.NFTA_TABLE_NAME].Text())
	}
	return names, nil
}

// list returns the objects of a kind, as attributes.
func (c *Conn) list(ctx context.Context, msg uint16, body []byte) ([]attrs, error) {
	msgs, err := c.reads.List(ctx, netlink.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | msg, Body: body})
	if err != nil {
		return nil, err
	}
	out := make([]attrs, len(msgs))
	for i, m := range msgs {
		if out[i], err = messageAttrs(m); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func messageAttrs(m netlink.Message) (attrs, error) {
	b, err := m.NetfilterAttrs()
	if err != nil {
		return nil, err
	}
	return netlink.AttrMap(string(b))
}

// listInTable is list for the objects in the table. Older kernels send those of all tables.
func (c *Conn) listInTable(ctx context.Context, msg uint16) ([]attrs, error) {
	all, err := c.list(ctx, msg, inTable(c.family, c.table))
	return slices.DeleteFunc(all, func(a attrs) bool { return a[unix.NFTA_TABLE_NAME].Text() != c.table }), err
}

// readChains reads the chains with their rules.
func (c *Conn) readChains(ctx context.Context) ([]Chain, error) {
	chains, err := c.listInTable(ctx, unix.NFT_MSG_GETCHAIN)
	if err != nil {
		return nil, err
	}
	rules, err := c.listInTable(ctx, unix.NFT_MSG_GETRULE)
	if err != nil {
		return nil, err
	}
	byChain := make(map[string][]Rule)
	for _, a := range rules {
		r, err := parseRule(a[unix.NFTA_RULE_EXPRESSIONS].Data)
		if err != nil {
			return nil, err
		}
		name := a[unix.NFTA_RULE_CHAIN].Text()
		byChain[name] = append(byChain[name], r)
	}
	out := make([]Chain, len(chains))
	for i, a := range chains {
		hook, err := netlink.AttrMap(a[unix.NFTA_CHAIN_HOOK].Data)
		if err != nil {
			return nil, err
		}
		policy, hasPolicy := a[unix.NFTA_CHAIN_POLICY]
		name := a[unix.NFTA_CHAIN_NAME].Text()
		out[i] = Chain{Name: name, Rules: byChain[name], Base: Base{
			Type: a[unix.NFTA_CHAIN_TYPE].Text(), Drop: hasPolicy && policy.Net32() == nfDrop,
			Hook: Hook(hook[unix.NFTA_HOOK_HOOKNUM].Net32()), Priority: int32(hook[unix.NFTA_HOOK_PRIORITY].Net32())}}
	}
	return out, nil
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
	sets, err := c.listInTable(ctx, unix.NFT_MSG_GETSET)
	if err != nil {
		return nil, err
	}
	out := make(map[string]Shape)
	for _, a := range sets {
		desc, err := netlink.AttrMap(a[unix.NFTA_SET_DESC].Data)
		if err != nil {
			return nil, err
		}
		sh := Shape{
			KeyType: a[unix.NFTA_SET_KEY_TYPE].Net32(), KeyLen: a[unix.NFTA_SET_KEY_LEN].Net32(),
			DataType: a[unix.NFTA_SET_DATA_TYPE].Net32(), DataLen: a[unix.NFTA_SET_DATA_LEN].Net32(),
			Flags: a[unix.NFTA_SET_FLAGS].Net32(), Size: desc[unix.NFTA_SET_DESC_SIZE].Net32(),
		}
		if sh.Verdicts() {
			sh.DataLen = 0 // kernels differ in what they send
		}
		out[a[unix.NFTA_SET_NAME].Text()] = sh
	}
	return out, nil
}

// elementAttempts is how often a set is read that changes all the time.
const elementAttempts = 5

// readElements reads the elements of a set. A hash table of the kernel that grows meanwhile yields
// some elements twice and others not at all, so the set is read again. If it changes during every
// attempt, the elements of all attempts are joined.
func (c *Conn) readElements(ctx context.Context, set string, sh Shape) (Elements, error) {
	met := NewElements(sh)
	for range elementAttempts {
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
	err := c.reads.Dump(ctx, netlink.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Body: body}, func(m netlink.Message) error {
		a, err := messageAttrs(m)
		if err != nil {
			return err
		}
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
