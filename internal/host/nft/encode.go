package nft

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// maxMessage bounds a message with elements: the list of them is an attribute, which ends at 64 KiB.
const maxMessage = 48 << 10

// encoder writes the messages of a transaction.
type encoder struct {
	writer
	family fwd.Family
	table  string
	// sent says, for each message, what it is.
	sent []sent
	// lastHeader is where the latest message begins.
	lastHeader int
	sets       uint32
}

// sent is a message: which operation it is of, and the part of its elements.
type sent struct {
	op       *Op
	elements []Element
}

func protoFamily(f fwd.Family) uint8 {
	if f == fwd.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// begin opens a message; o is its operation, for errors.
func (e *encoder) begin(typ uint16, flags uint16, family uint8, resource uint16, o *Op) int {
	at := len(e.buf)
	e.lastHeader = at
	e.buf = binary.NativeEndian.AppendUint32(e.buf, 0) // its length, see end
	e.buf = binary.NativeEndian.AppendUint16(e.buf, typ)
	e.buf = binary.NativeEndian.AppendUint16(e.buf, unix.NLM_F_REQUEST|flags)
	e.buf = binary.NativeEndian.AppendUint64(e.buf, 0) // the sequence number, which is given later, and the port
	e.buf = append(e.buf, family, 0)                   // NFNETLINK_V0
	e.buf = binary.BigEndian.AppendUint16(e.buf, resource)
	e.sent = append(e.sent, sent{op: o})
	return at
}

func (e *encoder) end(at int) {
	binary.NativeEndian.PutUint32(e.buf[at:], uint32(len(e.buf)-at))
}

func (e *encoder) message(msg uint16, flags uint16, o *Op) int {
	return e.begin(unix.NFNL_SUBSYS_NFTABLES<<8|msg, flags, protoFamily(e.family), 0, o)
}

// transaction encodes operations. The last one asks for an answer. Without an end, which commit adds, the kernel says what is
// wrong with them and undoes them.
func (e *encoder) transaction(ops []Op, commit bool) error {
	e.end(e.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil))
	for i := range ops {
		if err := e.op(&ops[i]); err != nil {
			return fmt.Errorf("%v: %w", ops[i], err)
		}
	}
	flags := binary.NativeEndian.Uint16(e.buf[e.lastHeader+6:])
	binary.NativeEndian.PutUint16(e.buf[e.lastHeader+6:], flags|unix.NLM_F_ACK)
	if commit {
		e.end(e.begin(unix.NFNL_MSG_BATCH_END, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil))
	}
	return nil
}

func (e *encoder) op(o *Op) error {
	switch o.Kind {
	case AddTable, DelTable:
		msg, flags := uint16(unix.NFT_MSG_NEWTABLE), uint16(unix.NLM_F_CREATE)
		if o.Kind == DelTable {
			msg, flags = unix.NFT_MSG_DELTABLE, 0
		}
		at := e.message(msg, flags, o)
		e.text(unix.NFTA_TABLE_NAME, e.table)
		e.end(at)
	case AddChain:
		e.addChain(o)
	case DelChain:
		at := e.message(unix.NFT_MSG_DELCHAIN, 0, o)
		e.text(unix.NFTA_CHAIN_TABLE, e.table)
		e.text(unix.NFTA_CHAIN_NAME, o.Name)
		e.end(at)
	case FlushChain:
		at := e.message(unix.NFT_MSG_DELRULE, 0, o)
		e.text(unix.NFTA_RULE_TABLE, e.table)
		e.text(unix.NFTA_RULE_CHAIN, o.Name)
		e.end(at)
	case AddRules:
		for _, r := range o.Rules {
			e.addRule(o, r)
		}
	case AddSet:
		e.addSet(o)
	case DelSet:
		at := e.message(unix.NFT_MSG_DELSET, 0, o)
		e.text(unix.NFTA_SET_TABLE, e.table)
		e.text(unix.NFTA_SET_NAME, o.Name)
		e.end(at)
	case AddElements, DelElements:
		return e.elements(o)
	}
	return nil
}

func (e *encoder) addChain(o *Op) {
	at := e.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, o)
	e.text(unix.NFTA_CHAIN_TABLE, e.table)
	e.text(unix.NFTA_CHAIN_NAME, o.Name)
	if b := o.Base; b != (Base{}) {
		hook := e.nest(unix.NFTA_CHAIN_HOOK)
		e.u32(unix.NFTA_HOOK_HOOKNUM, uint32(b.Hook))
		e.u32(unix.NFTA_HOOK_PRIORITY, uint32(b.Priority))
		e.close(hook)
		policy := uint32(nfAccept)
		if b.Drop {
			policy = nfDrop
		}
		e.u32(unix.NFTA_CHAIN_POLICY, policy)
		e.text(unix.NFTA_CHAIN_TYPE, b.Type)
	}
	e.end(at)
}

func (e *encoder) addRule(o *Op, r Rule) {
	at := e.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, o)
	e.text(unix.NFTA_RULE_TABLE, e.table)
	e.text(unix.NFTA_RULE_CHAIN, o.Name)
	list := e.nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, x := range r {
		item := e.nest(unix.NFTA_LIST_ELEM)
		e.text(unix.NFTA_EXPR_NAME, x.Name)
		e.bytes(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, x.Attrs)
		e.close(item)
	}
	e.close(list)
	e.end(at)
}

func (e *encoder) addSet(o *Op) {
	s := &o.Set
	at := e.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, o)
	e.text(unix.NFTA_SET_TABLE, e.table)
	e.text(unix.NFTA_SET_NAME, s.Name)
	e.u32(unix.NFTA_SET_FLAGS, s.flags())
	e.u32(unix.NFTA_SET_KEY_TYPE, typeOf(e.family, s.Key))
	e.u32(unix.NFTA_SET_KEY_LEN, uint32(Len(e.family, s.Key)))
	if s.Verdicts {
		e.u32(unix.NFTA_SET_DATA_TYPE, dataVerdict)
	} else if len(s.Value) > 0 {
		e.u32(unix.NFTA_SET_DATA_TYPE, typeOf(e.family, s.Value))
		e.u32(unix.NFTA_SET_DATA_LEN, uint32(Len(e.family, s.Value)))
	}
	if s.Size > 0 {
		desc := e.nest(unix.NFTA_SET_DESC)
		e.u32(unix.NFTA_SET_DESC_SIZE, s.Size)
		e.close(desc)
	}
	e.sets++
	e.u32(unix.NFTA_SET_ID, e.sets)
	e.bytes(unix.NFTA_SET_USERDATA, s.userdata(e.family))
	e.end(at)
}

func (e *encoder) elements(o *Op) error {
	msg, flags := uint16(unix.NFT_MSG_NEWSETELEM), uint16(unix.NLM_F_CREATE)
	if o.Kind == DelElements {
		msg, flags = unix.NFT_MSG_DELSETELEM, 0
	}
	keyLen := Len(e.family, o.Set.Key)
	for rest := o.Elements; len(rest) > 0; {
		at, first := e.message(msg, flags, o), rest
		e.text(unix.NFTA_SET_ELEM_LIST_TABLE, e.table)
		e.text(unix.NFTA_SET_ELEM_LIST_SET, o.Set.Name)
		list := e.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for len(rest) > 0 && len(e.buf)-at < maxMessage {
			if len(rest[0].Key) != keyLen {
				return fmt.Errorf("a key of %d bytes, want %d", len(rest[0].Key), keyLen)
			}
			e.element(&o.Set, rest[0])
			rest = rest[1:]
		}
		e.close(list)
		e.end(at)
		e.sent[len(e.sent)-1].elements = first[:len(first)-len(rest)]
	}
	return nil
}

func (e *encoder) element(s *Set, el Element) {
	item := e.nest(unix.NFTA_LIST_ELEM)
	if el.End {
		e.u32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	}
	key := e.nest(unix.NFTA_SET_ELEM_KEY)
	e.bytes(unix.NFTA_DATA_VALUE, el.Key)
	e.close(key)
	if el.Value != "" {
		data := e.nest(unix.NFTA_SET_ELEM_DATA)
		if s.Verdicts {
			e.verdict(el.Value)
		} else {
			e.bytes(unix.NFTA_DATA_VALUE, el.Value)
		}
		e.close(data)
	}
	e.close(item)
}

// The verdicts of netfilter (linux/netfilter.h).
const (
	nfDrop   = 0
	nfAccept = 1
)

// verdicts by name, without those that name a chain.
var verdicts = map[string]int32{"drop": nfDrop, "accept": nfAccept, "return": unix.NFT_RETURN}

func (w *writer) verdict(v string) {
	at := w.open(unix.NFTA_DATA_VERDICT)
	if code, ok := verdicts[v]; ok {
		w.u32(unix.NFTA_VERDICT_CODE, uint32(code))
	} else {
		code := int32(unix.NFT_GOTO)
		chain, isGoto := strings.CutPrefix(v, "goto ")
		if !isGoto {
			chain, code = strings.TrimPrefix(v, "jump "), unix.NFT_JUMP
		}
		w.u32(unix.NFTA_VERDICT_CODE, uint32(code))
		w.text(unix.NFTA_VERDICT_CHAIN, chain)
	}
	w.close(at)
}

// ParseVerdict is the inverse: it reads the attributes of a value that is a verdict.
func ParseVerdict(data string) (string, error) {
	var code int32
	var chain string
	err := netlink.Each(data, func(a Attr) error {
		if a.Type != unix.NFTA_DATA_VERDICT {
			return nil
		}
		return netlink.Each(a.Data, func(a Attr) error {
			switch a.Type {
			case unix.NFTA_VERDICT_CODE:
				code = int32(a.Net32())
			case unix.NFTA_VERDICT_CHAIN:
				chain = a.Text()
			}
			return nil
		})
	})
	switch code {
	case unix.NFT_GOTO:
		return "goto " + chain, err
	case unix.NFT_JUMP:
		return "jump " + chain, err
	}
	for name, c := range verdicts {
		if c == code {
			return name, err
		}
	}
	return fmt.Sprintf("verdict %d", code), err
}
