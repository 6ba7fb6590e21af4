package xtables

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Need is a rule like those that somebody is going to write.
type Need struct {
	// Table is that of the rule, Rule what follows -A CHAIN.
	Table, Rule string
	// Module is the kernel module that the rule needs, for people.
	Module string
}

// NeedBPF is a rule with the match bpf, which SourceIsDestination is.
var NeedBPF = Need{Table: "nat", Rule: `-m bpf --bytecode "1,6 0 0 65535" -j RETURN`, Module: "xt_bpf"}

// Lacking returns those of the needs that userland or kernel refuse, each with the error. It writes the rules into a chain of that
// name that nothing leads to, and removes it. The error says that this cannot be found out now. Needs are sorted by table.
func Lacking(ctx context.Context, t Interface, chain string, needs []Need) (map[Need]error, error) {
	if err := try(ctx, t, chain, needs); err == nil {
		return nil, nil
	}
	lacking := make(map[Need]error)
	for _, n := range needs { // which is it?
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

// try makes two restores: within one, legacy takes rules back in the userland and the kernel never sees them; and --test does not
// ask the kernel in either flavour.
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
	// Whatever was written, nothing is to stay.
	if rerr := t.Restore(context.WithoutCancel(ctx), []byte(remove.String())); err == nil {
		err = rerr
	}
	return err
}
