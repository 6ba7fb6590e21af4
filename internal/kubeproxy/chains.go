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

// tables are those of iptables that kube-proxy has chains in.
var tables = []string{"mangle", "filter", "nat"}

// chainNames are the chains that kube-proxy of any version and mode makes, by table, without those for one Service. The
// kubelet's are not among them.
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

// isKubeProxys says whether kube-proxy made the chain.
func isKubeProxys(table, chain string) bool {
	return slices.Contains(chainNames[table], chain) || table == "nat" && serviceChain.MatchString(chain)
}

// maxPiece is the number of chains that one restore removes: the nft userland takes time with the square of it.
const maxPiece = 1000

// chains is what kube-proxy left in the tables of one userland and family.
type chains struct {
	tables xtables.Interface
	// names are the chains to remove, by table, sorted; jumps the rules of other chains that lead to them, as "CHAIN RULE".
	names, jumps map[string][]string
	// kept are the chains that stay since somebody else's rule leads to them, as "table CHAIN (from CHAIN)".
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
		c.sort(table, all)
	}
	return c, nil
}

// sort finds what to remove in a table.
func (c *chains) sort(table string, all xtables.Table) {
	gone := make(map[string]bool)
	for name := range all {
		if isKubeProxys(table, name) {
			gone[name] = true
		}
	}
	if len(gone) == 0 {
		return
	}
	// What a chain that stays leads to has to stay, too.
	keep := func(name, from string) {
		if gone[name] {
			delete(gone, name)
			c.kept = append(c.kept, fmt.Sprintf("chain %s of table %s, to which a rule of %s leads", name, table, from))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, rule := range all[name].Rules {
			to := target(rule)
			switch {
			case !gone[to] || gone[name]:
			case all[name].Policy != "": // a chain of the kernel: kube-proxy put the jump there
				c.jumps[table] = append(c.jumps[table], name+" "+rule)
			default:
				keep(to, name)
			}
		}
	}
	for changed := true; changed; {
		before := len(gone)
		for name, chain := range all {
			if isKubeProxys(table, name) && !gone[name] {
				for _, rule := range chain.Rules {
					keep(target(rule), name)
				}
			}
		}
		changed = len(gone) < before
	}
	c.jumps[table] = slices.DeleteFunc(c.jumps[table], func(jump string) bool { return !gone[target(jump)] })
	c.names[table] = slices.Sorted(maps.Keys(gone))
}

// target is the chain or target that a rule leads to; empty for none.
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

// count is the number of chains and of jumps to them.
func (c *chains) count() (n, jumps int) {
	for table := range c.names {
		n += len(c.names[table])
		jumps += len(c.jumps[table])
	}
	return n, jumps
}

// remove takes the jumps out first, so that nothing meets half of the rules, then empties the chains, then removes them.
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
