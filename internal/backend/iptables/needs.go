package iptables

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/fairlead/fairlead/internal/host/xtables"
)

// probeChain only exists while Open tests what the kernel supports.
const probeChain = "FAIRLEAD-PROBE"

// needs are rules like the ones that every node has, without those that depend on FamilyOptions.
// Only Services with session affinity have a rule like affinityNeed.
var (
	needs = []xtables.Need{
		{Table: "filter", Rule: "-m conntrack --ctstate NEW -j RETURN", Module: "xt_conntrack"},
		{Table: "filter", Rule: "-j REJECT", Module: "ipt_REJECT or ip6t_REJECT"},
		{Table: "nat", Rule: "-m mark --mark 0x1/0x1 -j MARK --set-xmark 0x1/0x1", Module: "xt_mark"},
		{Table: "nat", Rule: "-m addrtype --dst-type LOCAL -j RETURN", Module: "xt_addrtype"},
		{Table: "nat", Rule: "-m statistic --mode random --probability 0.5 -j RETURN", Module: "xt_statistic"},
		{Table: "nat", Rule: "-j MASQUERADE", Module: "xt_MASQUERADE"},
	}
	affinityNeed = xtables.Need{Table: "nat", Rule: "-m recent --name " + probeChain + " --rcheck --seconds 1 --reap -j RETURN", Module: "xt_recent"}
)

// tryKernel returns whether the kernel supports session affinity and hairpin by BPF. The error is
// that of tryNeeds. A kernel with the rules of an earlier run supports what they need, so nothing
// is written to it: with the legacy userland each test would copy the whole table, and a restart
// with nothing changed must not write anything.
func tryKernel(ctx context.Context, t *xtables.Tables, names xtables.Exchange) (affinity, bpf bool, err error) {
	// Mode ipvs also has a chain with the first name, but not one with the second.
	if rules := t.Rules(ctx, NAT.String(), names.Name(chainPostrouting)); len(t.Rules(ctx, Filter.String(), names.Name(chainFilter))) > 0 && len(rules) > 0 {
		return true, strings.Contains(strings.Join(rules, "\n"), "-m bpf "), nil
	}
	return tryNeeds(ctx, xtables.Exchanged(t, names))
}

// tryNeeds tests which modules userland and kernel support: affinity for session affinity, bpf for
// hairpin connections by xt_bpf. The error names the missing modules without which mode iptables
// cannot work.
func tryNeeds(ctx context.Context, t xtables.Interface) (affinity, bpf bool, err error) {
	lacking, err := xtables.Lacking(ctx, t, probeChain, append(needs[:len(needs):len(needs)], affinityNeed, xtables.NeedBPF))
	if err != nil {
		return true, false, nil // such as a lock that another process holds: the first sync reports it
	}
	affinity, bpf = lacking[affinityNeed] == nil, lacking[xtables.NeedBPF] == nil
	var modules []string
	var why error
	for _, n := range needs {
		if err := lacking[n]; err != nil {
			modules = append(modules, n.Module)
			why = cmp.Or(why, err)
		}
	}
	if why != nil {
		return affinity, bpf, fmt.Errorf("kernel or userland refuses rules: load the modules %s on the host, or use another mode (%w)", strings.Join(modules, ", "), why)
	}
	return affinity, bpf, nil
}
