package iptables

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// maxLinear limits the length of the chains of a dispatch tree: up to this many entries are in one
// chain. More are split by the next four bits of their keys, into at most sixteen jumps. So a
// packet traverses some tens of rules, however many frontends there are, and a changed frontend
// rewrites one short chain.
const maxLinear = 16

// treeKey is the key of a tree entry as a string of 4-bit digits: the address (not in a tree by
// port), one digit for the protocol and four for the port (not in a tree by address only).
type treeKey string

var protoDigit = map[fwd.Proto]byte{fwd.TCP: 0, fwd.UDP: 1, fwd.SCTP: 2}
var digitProto = [...]fwd.Proto{fwd.TCP, fwd.UDP, fwd.SCTP}

func addrKey(a netip.Addr) treeKey {
	raw := a.AsSlice()
	k := make([]byte, 0, 2*len(raw)+5)
	for _, b := range raw {
		k = append(k, b>>4, b&15)
	}
	return treeKey(k)
}

func portKey(p fwd.Proto, port uint16) treeKey {
	return treeKey([]byte{protoDigit[p], byte(port >> 12), byte(port>>8) & 15, byte(port>>4) & 15, byte(port) & 15})
}

// frontendKey is the key of a frontend in the tree of virtual IPs or of node ports.
func frontendKey(k fwd.Key) treeKey {
	if k.IsNodePort() {
		return portKey(k.Proto, k.Port)
	}
	return addrKey(k.Addr) + portKey(k.Proto, k.Port)
}

// entry is one rule of a tree with the Service that it belongs to.
type entry struct {
	rule  string
	owner fwd.Service
}

// tree dispatches to entries by key: a compressed radix tree over the digits, in which subtrees of
// up to maxLinear entries are written as one chain. Its chains depend on its entries, not on the
// order in which they were added.
type tree struct {
	table  Table
	root   string // the first chain, which always exists
	letter string // the letter of the other chains
	// addrDigits is the number of digits of the address in each key: 0, 8 or 32.
	addrDigits int
	// port is the match of a range of ports: dport or sport.
	port func(p fwd.Proto, lo, hi uint16) string
	// head and tail are the rules before and after those of the tree in the root chain.
	head, tail []string

	top *treeNode
	// changed is whether there was a change since the last edits. dirty holds the prefixes of
	// chains that may have changed.
	changed bool
	dirty   map[treeKey]struct{}
}

func newTree(table Table, root, letter string, addrDigits int) *tree {
	return &tree{table: table, root: root, letter: letter, addrDigits: addrDigits, port: dport, dirty: make(map[treeKey]struct{})}
}

// treeNode is a set of entries with their longest common prefix. A node with one entry is a leaf,
// and its prefix is the key.
type treeNode struct {
	prefix   treeKey
	count    int
	children *[16]*treeNode // nil in a leaf
	entry    entry          // of a leaf
}

// set adds or replaces an entry.
func (t *tree) set(k treeKey, e entry) {
	t.touch(k)
	t.top = insert(t.top, k, &treeNode{prefix: k, count: 1, entry: e})
	t.touch(k)
}

// remove removes an entry of a Service. It does nothing if there is none or if it belongs to
// another Service: if a key passes from one Service to another, set and remove may come in either
// order.
func (t *tree) remove(k treeKey, owner fwd.Service) {
	if leaf := t.leaf(k); leaf == nil || leaf.entry.owner != owner {
		return
	}
	t.touch(k)
	t.top = without(t.top, k)
	t.touch(k)
}

func (t *tree) leaf(k treeKey) *treeNode {
	n := t.top
	for n != nil && len(n.prefix) < len(k) {
		n = n.children[k[len(n.prefix)]]
	}
	if n == nil || n.prefix != k {
		return nil
	}
	return n
}

// touch marks all chains whose rules may change with an entry: the chains on the path to it, and
// all chains of a subtree that is so small that it is written as one chain, or was before the
// change.
func (t *tree) touch(k treeKey) {
	t.changed = true
	for n := t.top; n != nil && strings.HasPrefix(string(k), string(n.prefix)); {
		if n.count <= maxLinear+1 {
			t.touchAll(n)
			return
		}
		t.dirty[n.prefix] = struct{}{}
		if len(n.prefix) == len(k) {
			return
		}
		next := n.children[k[len(n.prefix)]]
		if next != nil && next.count > 1 {
			// Even if the key is not below it: a new node may come in between.
			t.dirty[next.prefix] = struct{}{}
		}
		n = next
	}
}

func (t *tree) touchAll(n *treeNode) {
	if n == nil || n.count < 2 {
		return
	}
	t.dirty[n.prefix] = struct{}{}
	for _, c := range n.children {
		t.touchAll(c)
	}
}

// insert puts a leaf below n. It replaces a leaf with the same key.
func insert(n *treeNode, k treeKey, leaf *treeNode) *treeNode {
	if n == nil {
		return leaf
	}
	common := commonPrefix(n.prefix, k)
	if common == len(n.prefix) {
		if common == len(k) {
			return leaf
		}
		c := &n.children[k[common]]
		before := 0
		if *c != nil {
			before = (*c).count
		}
		*c = insert(*c, k, leaf)
		n.count += (*c).count - before
		return n
	}
	branch := &treeNode{prefix: k[:common], count: n.count + 1, children: new([16]*treeNode)}
	branch.children[n.prefix[common]] = n
	branch.children[k[common]] = leaf
	return branch
}

func without(n *treeNode, k treeKey) *treeNode {
	if n == nil || !strings.HasPrefix(string(k), string(n.prefix)) {
		return n
	}
	if len(n.prefix) == len(k) {
		return nil
	}
	c := &n.children[k[len(n.prefix)]]
	if *c == nil {
		return n
	}
	before := (*c).count
	*c = without(*c, k)
	after := 0
	if *c != nil {
		after = (*c).count
	}
	n.count += after - before
	if after > 0 {
		return n
	}
	var only *treeNode
	for _, c := range n.children {
		if c == nil {
			continue
		}
		if only != nil {
			return n
		}
		only = c
	}
	return only
}

func commonPrefix(a, b treeKey) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// edits calls set for each chain whose rules may have changed since the last call, and remove for
// each chain that no longer exists. If all is true, it calls set for every chain.
func (t *tree) edits(all bool, set func(ChainID, []string), remove func(ChainID)) {
	if all {
		t.touchAll(t.top)
	}
	if !t.changed && !all {
		return
	}
	t.changed = false
	for p := range t.dirty {
		id := ChainID{t.table, t.name(p)}
		if n := t.chainAt(p); n != nil {
			set(id, t.rules(n))
		} else {
			remove(id)
		}
	}
	clear(t.dirty)
	set(ChainID{t.table, t.root}, slices.Concat(t.head, t.rootRules(), t.tail))
}

// rootRules are the rules of the root chain: all entries if there are few, otherwise one jump, so
// that a packet for none of the entries only takes one comparison.
func (t *tree) rootRules() []string {
	switch {
	case t.top == nil:
		return nil
	case t.top.count <= maxLinear || len(t.top.prefix) == 0:
		return t.rules(t.top)
	}
	return []string{t.jump(t.top)}
}

// chainAt returns the node with that prefix if it has its own chain now, or nil.
func (t *tree) chainAt(p treeKey) *treeNode {
	parentIsSplit := t.top != nil && t.top.count > maxLinear && len(t.top.prefix) > 0
	for n := t.top; n != nil && strings.HasPrefix(string(p), string(n.prefix)); n = n.children[p[len(n.prefix)]] {
		if len(n.prefix) == len(p) {
			if n.count > 1 && parentIsSplit {
				return n
			}
			return nil
		}
		parentIsSplit = n.count > maxLinear
	}
	return nil
}

// rules are the rules of a node's chain.
func (t *tree) rules(n *treeNode) []string {
	if n.count <= maxLinear {
		return leaves(n, make([]string, 0, n.count))
	}
	out := make([]string, 0, 16)
	for _, c := range n.children {
		switch {
		case c == nil:
		case c.count == 1:
			out = append(out, c.entry.rule)
		default:
			out = append(out, t.jump(c))
		}
	}
	return out
}

func leaves(n *treeNode, out []string) []string {
	if n.count == 1 {
		return append(out, n.entry.rule)
	}
	for _, c := range n.children {
		if c != nil {
			out = leaves(c, out)
		}
	}
	return out
}

func (t *tree) jump(n *treeNode) string {
	return and(t.match(n.prefix), "-j "+t.name(n.prefix))
}

// owner returns the Service of the entry with that rule.
func (t *tree) owner(rule string) (fwd.Service, bool) {
	var find func(n *treeNode) *treeNode
	find = func(n *treeNode) *treeNode {
		if n == nil || n.count == 1 && n.entry.rule == rule {
			return n
		}
		if n.count > 1 {
			for _, c := range n.children {
				if leaf := find(c); leaf != nil {
					return leaf
				}
			}
		}
		return nil
	}
	if leaf := find(t.top); leaf != nil {
		return leaf.entry.owner, true
	}
	return fwd.Service{}, false
}

// name is the chain of a prefix: its digits if they fit into 16 bytes, as for IPv4, otherwise a
// hash.
func (t *tree) name(p treeKey) string {
	if len(p) <= 16 {
		digits := make([]byte, len(p))
		for i := range p {
			digits[i] = "0123456789ABCDEF"[p[i]]
		}
		return chainPrefix + t.letter + "-" + string(digits)
	}
	return hashedName(t.letter, hex.EncodeToString([]byte(p)))
}

// match matches packets whose key begins with the prefix.
func (t *tree) match(p treeKey) string {
	n := len(p)
	addr := ""
	if t.addrDigits > 0 && n > 0 {
		addr = "-d " + digitsPrefix(p[:min(n, t.addrDigits)], t.addrDigits)
	}
	rest := p[min(n, t.addrDigits):]
	if len(rest) == 0 {
		return addr
	}
	proto := digitProto[rest[0]]
	var lo, hi uint16 = 0, 0xffff
	for i, d := range []byte(rest[1:]) {
		lo |= uint16(d) << (12 - 4*i)
		hi = lo | 0xffff>>(4*(i+1))
	}
	if len(rest) == 1 {
		return and(addr, "-p "+proto.String())
	}
	return and(addr, t.port(proto, lo, hi))
}

// digitsPrefix is the prefix of the addresses that begin with the digits.
func digitsPrefix(p treeKey, addrDigits int) string {
	raw := make([]byte, addrDigits/2)
	for i := range p {
		raw[i/2] |= p[i] << (4 * (1 - i%2))
	}
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		panic(fmt.Sprintf("BUG: tree with %d address digits", addrDigits))
	}
	return netip.PrefixFrom(a, 4*len(p)).String()
}
