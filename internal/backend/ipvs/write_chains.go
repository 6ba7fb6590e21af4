package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/host/xtables"
)

// manyChains is the maximum number of chains that one restore deletes: the time of iptables-nft
// grows with the square of the number. There are many after a change from mode iptables.
const manyChains = 1000

// writeChains writes all chains that differ, in one restore unless it has to delete more than
// manyChains.
func (w *writer) writeChains(ctx context.Context) {
	keys, gone := w.upserts[KindChain], w.deletes[KindChain]
	if len(keys)+len(gone) == 0 {
		return
	}
	var inputs [][]byte
	if len(gone) <= manyChains {
		inputs = append(inputs, restoreInput(w.plan, keys, gone, gone, gone))
	} else {
		inputs = append(inputs, restoreInput(w.plan, keys, gone, nil, nil))
		for piece := range slices.Chunk(gone, manyChains) {
			inputs = append(inputs, restoreInput(w.plan, nil, nil, piece, nil))
		}
		for piece := range slices.Chunk(gone, manyChains) {
			inputs = append(inputs, restoreInput(w.plan, nil, nil, nil, piece))
		}
	}
	for _, in := range inputs {
		if err := w.opts.Tables.Restore(ctx, in); err != nil {
			w.chainsErr = fmt.Errorf("write chains: %w", err)
			var re *xtables.RestoreError
			w.refused = w.refused || errors.As(err, &re) && !re.Transient
			w.failAll(slices.Concat(keys, gone), w.chainsErr)
			return
		}
	}
	w.ok(keys)
	w.ok(gone)
}

// restoreInput returns the input of one restore: keys are chains to write, and in built-in chains
// jumps; unjump are built-in chains to remove jumps from; empty and remove are chains to flush and
// to delete.
func restoreInput(p plan, keys, unjump, empty, remove []Key) []byte {
	var b bytes.Buffer
	for _, table := range tables {
		of := func(keys []Key, kernels bool) (out []Key) {
			for _, k := range keys {
				if k.Table == table && builtin(k.Name) == kernels {
					out = append(out, k)
				}
			}
			return out
		}
		var lines []string
		add := func(parts ...string) { lines = append(lines, strings.Join(parts, "")) }
		for _, k := range slices.Concat(of(keys, false), of(empty, false)) {
			add(":", k.Name, " - [0:0]")
		}
		for _, k := range of(keys, false) {
			for r := range rules(p.Upserts[k]) {
				add("-A ", k.Name, " ", r)
			}
		}
		for _, k := range slices.Concat(of(keys, true), of(unjump, true)) {
			have, _ := p.Actual(k)
			for r := range rules(have) {
				add("-D ", k.Name, " ", r)
			}
		}
		for _, k := range of(keys, true) {
			for _, r := range slices.Backward(slices.Collect(rules(p.Upserts[k]))) {
				add("-I ", k.Name, " ", r)
			}
		}
		for _, k := range of(remove, false) {
			add("-X ", k.Name)
		}
		if len(lines) > 0 {
			fmt.Fprintf(&b, "*%s\n%s\nCOMMIT\n", table, strings.Join(lines, "\n"))
		}
	}
	return b.Bytes()
}

// rules yields the rules of a chain.
func rules(v Value) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for r := range strings.SplitSeq(v.Rules, "\n") {
			if r != "" && !yield(r) {
				return
			}
		}
	}
}
