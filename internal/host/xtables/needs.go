package xtables

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Need is an example of a rule that the caller is going to write.
type Need struct {
	// Table is the table of the rule, Rule is the text after -A CHAIN.
	Table, Rule string
	// Module is the kernel module that the rule needs, for error messages.
	Module string
}

// NeedBPF is a rule with the match bpf, as in SourceIsDestination.
var NeedBPF = Need{Table: "nat", Rule: `-m bpf --bytecode "1,6 0 0 65535" -j RETURN`, Module: "xt_bpf"}

// Lacking returns the needs that the userland or the kernel refuses, each with the error. It writes
// the rules into an unused chain with the given name, and removes the chain. It returns an error if
// the test cannot be made now. Needs must be sorted by table.
func Lacking(ctx context.Context, t Interface, chain string, needs []Need) (map[Need]error, error) {
	if err := try(ctx, t, chain, needs); err == nil {
		return nil, nil
	}
	lacking := make(map[Need]error)
	for _, n := range needs { // find out which one is refused
		err := try(ctx, t, chain, []Need{n})
		var refused *RestoreError
		switch {
		case err == nil:
		case errors.As(err, &refused) && !refused.Transient:
			lacking[n] = err
		default:
			return nil, err
		}
	}
	return lacking, nil
}

// try makes two restores: in a single one, the legacy userland would remove the rules again before
// the kernel sees them. --test does not involve the kernel in either flavour.
func try(ctx context.Context, t Interface, chain string, needs []Need) error {
	var write, remove strings.Builder
	for i, n := range needs {
		if i == 0 || needs[i-1].Table != n.Table {
			fmt.Fprintf(&write, "*%s\n:%s - [0:0]\n", n.Table, chain)
			fmt.Fprintf(&remove, "*%s\n:%s - [0:0]\n-X %s\nCOMMIT\n", n.Table, chain, chain)
		}
		fmt.Fprintf(&write, "-A %s %s\n", chain, n.Rule)
		if i == len(needs)-1 || needs[i+1].Table != n.Table {
			write.WriteString("COMMIT\n")
		}
	}
	err := t.Restore(ctx, []byte(write.String()))
	// Remove the chain, whatever was written.
	if rerr := t.Restore(context.WithoutCancel(ctx), []byte(remove.String())); err == nil {
		err = rerr
	}
	return err
}
