package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/host/xtables"
)

// tables are the iptables tables in which kube-proxy has chains.
var tables = []string{"mangle", "filter", "nat"}

// chainNames are the chains of all versions and modes of kube-proxy by table, without the ones for
// single Services. They do not include the chains of the kubelet.
var chainNames = map[string][]string{
	"mangle": {"KUBE-PROXY-CANARY"},
	"filter": {
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
		"KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	},
	"nat": {
		"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY",
		"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-FIRE-WALL",
	},
}

// serviceChain is the name of a chain for one Service, endpoint or load balancer.
var serviceChain = regexp.MustCompile(`^KUBE-(SVC|SVL|EXT|FW|SEP|XLB)-[A-Z2-7]{16}$`)

// isKubeProxys returns whether kube-proxy made the chain.
func isKubeProxys(table, chain string) bool {
	return slices.Contains(chainNames[table], chain) || table == "nat" && serviceChain.MatchString(chain)
}

// maxPiece is the number of chains that one restore removes: the time of the nft userland grows
// with its square.
const maxPiece = 1000

// chains is what kube-proxy left in iptables for one userland and family.
type chains struct {
	tables xtables.Interface
	// names are the chains to remove by table, sorted. jumps are the rules of built-in chains that
	// jump to them, as "CHAIN RULE".
	names, jumps map[string][]string
	// kept describes the chains that stay because another program's rule jumps to them.
	kept []string
}

// findChains reads the tables.
func findChains(ctx context.Context, t xtables.Interface) (*chains, error) {
	c := &chains{tables: t, names: make(map[string][]string), jumps: make(map[string][]string)}
	for _, table := range tables {
		all, err := t.Read(ctx, table)
		if err != nil {
			return nil, err
		}
		c.add(table, all)
	}
	return c, nil
}

// add finds what to remove in a table.
func (c *chains) add(table string, all xtables.Table) {
	remove := make(map[string]bool)
	for name := range all {
		if isKubeProxys(table, name) {
			remove[name] = true
		}
	}
	if len(remove) == 0 {
		return
	}
	// A chain that a remaining chain jumps to must stay too.
	keep := func(name, from string) {
		if remove[name] {
			delete(remove, name)
			c.kept = append(c.kept, fmt.Sprintf("chain %s of table %s (a rule of chain %s jumps to it)", name, table, from))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, rule := range all[name].Rules {
			to := target(rule)
			switch {
			case !remove[to] || remove[name]:
			case all[name].Policy != "": // built-in: kube-proxy added the jump
				c.jumps[table] = append(c.jumps[table], name+" "+rule)
			default:
				keep(to, name)
			}
		}
	}
	for changed := true; changed; {
		before := len(remove)
		for name, chain := range all {
			if isKubeProxys(table, name) && !remove[name] {
				for _, rule := range chain.Rules {
					keep(target(rule), name)
				}
			}
		}
		changed = len(remove) < before
	}
	c.jumps[table] = slices.DeleteFunc(c.jumps[table], func(jump string) bool { return !remove[target(jump)] })
	c.names[table] = slices.Sorted(maps.Keys(remove))
}

// target returns the chain or target that a rule jumps to, or empty.
func target(rule string) string {
	words := strings.Fields(rule)
	for i := len(words) - 2; i >= 0; i-- {
		if words[i] == "-j" || words[i] == "-g" {
			return words[i+1]
		}
	}
	return ""
}

func (c *chains) empty() bool { return len(c.names) == 0 }

// count returns the number of chains and of jumps to them.
func (c *chains) count() (n, jumps int) {
	for table := range c.names {
		n += len(c.names[table])
		jumps += len(c.jumps[table])
	}
	return n, jumps
}

// remove removes the jumps first, so that no packet traverses a part of the rules, then empties the
// chains, then removes them.
func (c *chains) remove(ctx context.Context) error {
	var errs []error
	for _, table := range tables {
		if len(c.names[table]) == 0 {
			continue
		}
		var steps [][]string
		var lines []string
		for _, jump := range c.jumps[table] {
			lines = append(lines, "-D "+jump)
		}
		steps = append(steps, lines)
		for _, line := range []string{":%s - [0:0]", "-X %s"} {
			for piece := range slices.Chunk(c.names[table], maxPiece) {
				lines := make([]string, len(piece))
				for i, name := range piece {
					lines[i] = fmt.Sprintf(line, name)
				}
				steps = append(steps, lines)
			}
		}
		for _, lines := range steps {
			if len(lines) == 0 {
				continue
			}
			input := "*" + table + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
			if err := c.tables.Restore(ctx, []byte(input)); err != nil {
				errs = append(errs, fmt.Errorf("remove kube-proxy's chains from table %s: %w", table, err))
				break
			}
		}
	}
	return errors.Join(errs...)
}
