package nft

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// maxMessage limits a message with elements: their list is one attribute, which cannot exceed 64
// KiB.
const maxMessage = 48 << 10

// encoder makes the requests of a transaction.
type encoder struct {
	family fwd.Family
	table  string
	reqs   []netlink.Request
	// origins says for each request what it was made of.
	origins []origin
	sets    uint32
}

// origin is the operation of a request, and those of its elements that are in it.
type origin struct {
	op       *Op
	elements []Element
}

func protoFamily(f fwd.Family) uint8 {
	if f == fwd.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// inTable begins the body of a request about objects of a table. The attribute with its name has
// the same number in all.
func inTable(f fwd.Family, table string) []byte {
	return netlink.AppendText(netlink.NetfilterHeader(protoFamily(f)), unix.NFTA_TABLE_NAME, table)
}

// named begins the body of a request about the object of an operation.
func (e *encoder) named(typ uint16, o *Op) []byte {
	return netlink.AppendText(inTable(e.family, e.table), typ, o.Name)
}

func (e *encoder) add(o *Op, msg, flags uint16, body []byte) {
	e.reqs = append(e.reqs, netlink.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | msg, Flags: flags, Body: body})
	e.origins = append(e.origins, origin{op: o})
}

func (e *encoder) op(o *Op) error {
	switch o.Kind {
	case AddTable:
		e.add(o, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, inTable(e.family, e.table))
	case DelTable:
		e.add(o, unix.NFT_MSG_DELTABLE, 0, inTable(e.family, e.table))
	case AddChain:
		e.add(o, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, appendBase(e.named(unix.NFTA_CHAIN_NAME, o), o.Base))
	case DelChain:
		e.add(o, unix.NFT_MSG_DELCHAIN, 0, e.named(unix.NFTA_CHAIN_NAME, o))
	case FlushChain:
		e.add(o, unix.NFT_MSG_DELRULE, 0, e.named(unix.NFTA_RULE_CHAIN, o))
	case AddRules:
		for _, r := range o.Rules {
			e.add(o, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, appendRule(e.named(unix.NFTA_RULE_CHAIN, o), r))
		}
	case AddSet:
		e.sets++
		e.add(o, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, appendSet(e.named(unix.NFTA_SET_NAME, o), e.family, &o.Set, e.sets))
	case DelSet:
		e.add(o, unix.NFT_MSG_DELSET, 0, e.named(unix.NFTA_SET_NAME, o))
	case AddElements:
		return e.elements(o, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	case DelElements:
		return e.elements(o, unix.NFT_MSG_DELSETELEM, 0)
	}
	return nil
}

func appendBase(b []byte, base Base) []byte {
	if base == (Base{}) {
		return b
	}
	b = netlink.AppendNest(b, unix.NFTA_CHAIN_HOOK, func(b []byte) []byte {
		b = netlink.AppendNet32(b, unix.NFTA_HOOK_HOOKNUM, uint32(base.Hook))
		return netlink.AppendNet32(b, unix.NFTA_HOOK_PRIORITY, uint32(base.Priority))
	})
	policy := uint32(nfAccept)
	if base.Drop {
		policy = nfDrop
	}
	b = netlink.AppendNet32(b, unix.NFTA_CHAIN_POLICY, policy)
	return netlink.AppendText(b, unix.NFTA_CHAIN_TYPE, base.Type)
}

func appendRule(b []byte, r Rule) []byte {
	return netlink.AppendNest(b, unix.NFTA_RULE_EXPRESSIONS, func(b []byte) []byte {
		for _, x := range r {
			b = netlink.AppendNest(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
				b = netlink.AppendText(b, unix.NFTA_EXPR_NAME, x.Name)
				return netlink.AppendRaw(b, unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, x.Attrs)
			})
		}
		return b
	})
}

func appendSet(b []byte, f fwd.Family, s *Set, id uint32) []byte {
	shape := s.Shape(f)
	b = netlink.AppendNet32(b, unix.NFTA_SET_FLAGS, shape.Flags)
	b = netlink.AppendNet32(b, unix.NFTA_SET_KEY_TYPE, shape.KeyType)
	b = netlink.AppendNet32(b, unix.NFTA_SET_KEY_LEN, shape.KeyLen)
	if shape.DataType != 0 {
		b = netlink.AppendNet32(b, unix.NFTA_SET_DATA_TYPE, shape.DataType)
	}
	if shape.DataLen != 0 {
		b = netlink.AppendNet32(b, unix.NFTA_SET_DATA_LEN, shape.DataLen)
	}
	if s.Size > 0 {
		b = netlink.AppendNest(b, unix.NFTA_SET_DESC, func(b []byte) []byte {
			return netlink.AppendNet32(b, unix.NFTA_SET_DESC_SIZE, s.Size)
		})
	}
	b = netlink.AppendNet32(b, unix.NFTA_SET_ID, id)
	return netlink.AppendRaw(b, unix.NFTA_SET_USERDATA, s.userdata(f))
}

func (e *encoder) elements(o *Op, msg, flags uint16) error {
	keyLen := Len(e.family, o.Set.Key)
	if i := slices.IndexFunc(o.Elements, func(el Element) bool { return len(el.Key) != keyLen }); i >= 0 {
		return fmt.Errorf("a key of %d bytes, want %d", len(o.Elements[i].Key), keyLen)
	}
	for todo := o.Elements; len(todo) > 0; {
		n := 0
		body := netlink.AppendNest(e.named(unix.NFTA_SET_ELEM_LIST_SET, o), unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(b []byte) []byte {
			for ; n < len(todo) && len(b) < maxMessage; n++ {
				b = appendElement(b, &o.Set, todo[n])
			}
			return b
		})
		e.add(o, msg, flags, body)
		e.origins[len(e.origins)-1].elements, todo = todo[:n], todo[n:]
	}
	return nil
}

func appendElement(b []byte, s *Set, el Element) []byte {
	return netlink.AppendNest(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
		if el.End {
			b = netlink.AppendNet32(b, unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		}
		b = netlink.AppendNest(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte {
			return netlink.AppendRaw(b, unix.NFTA_DATA_VALUE, el.Key)
		})
		if el.Value == "" {
			return b
		}
		return netlink.AppendNest(b, unix.NFTA_SET_ELEM_DATA, func(b []byte) []byte {
			if s.Verdicts {
				return appendVerdict(b, el.Value)
			}
			return netlink.AppendRaw(b, unix.NFTA_DATA_VALUE, el.Value)
		})
	})
}

// The verdicts of netfilter (linux/netfilter.h).
const (
	nfDrop   = 0
	nfAccept = 1
)

// verdicts are the verdicts without a chain, by name.
var verdicts = map[string]int32{"drop": nfDrop, "accept": nfAccept, "return": unix.NFT_RETURN}

func appendVerdict(b []byte, v string) []byte {
	code, named := verdicts[v]
	chain, isGoto := strings.CutPrefix(v, "goto ")
	switch {
	case isGoto:
		code = unix.NFT_GOTO
	case !named:
		chain, code = strings.TrimPrefix(v, "jump "), unix.NFT_JUMP
	}
	attrs := netlink.AppendNet32(nil, unix.NFTA_VERDICT_CODE, uint32(code))
	if !named {
		attrs = netlink.AppendText(attrs, unix.NFTA_VERDICT_CHAIN, chain)
	}
	return netlink.AppendAttr(b, unix.NFTA_DATA_VERDICT, attrs...) // without the flag of a nested attribute, like the kernel
}

// ParseVerdict decodes the attributes of a value that is a verdict.
func ParseVerdict(data string) (string, error) {
	value, err := netlink.AttrMap(data)
	if err != nil {
		return "", err
	}
	v, err := netlink.AttrMap(value[unix.NFTA_DATA_VERDICT].Data)
	if err != nil {
		return "", err
	}
	code, chain := int32(v[unix.NFTA_VERDICT_CODE].Net32()), v[unix.NFTA_VERDICT_CHAIN].Text()
	switch code {
	case unix.NFT_GOTO:
		return "goto " + chain, nil
	case unix.NFT_JUMP:
		return "jump " + chain, nil
	}
	for name, c := range verdicts {
		if c == code {
			return name, nil
		}
	}
	return fmt.Sprintf("verdict %d", code), nil
}
