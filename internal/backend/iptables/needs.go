package iptables

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/fairlead/fairlead/internal/host/xtables"
)

// probeChain is a chain that is there only while it is tried what rules need.
const probeChain = "FAIRLEAD-PROBE"

// needs are rules like those that every node gets, affinityNeed one that only Services with session affinity have. What
// depends on FamilyOptions is left out.
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

// tryKernel says what of session affinity and hairpin by BPF the kernel has; the error is tryNeeds'. A kernel that holds the
// rules of an earlier run has what they need, and is not written to: in the legacy userland each try would copy the whole table,
// and a restart with nothing changed writes nothing.
func tryKernel(ctx context.Context, t *xtables.Tables, names xtables.Exchange) (affinity, bpf bool, err error) {
	// Mode ipvs has a chain of the one name, too, but none of the other.
	if rules := t.Rules(ctx, NAT.String(), names.Name(chainPostrouting)); len(t.Rules(ctx, Filter.String(), names.Name(chainFilter))) > 0 && len(rules) > 0 {
		return true, strings.Contains(strings.Join(rules, "\n"), "-m bpf "), nil
	}
	return tryNeeds(ctx, xtables.Exchanged(t, names))
}

// tryNeeds says what of the modules userland and kernel lack: the error names those without which there is no mode
// iptables, affinity says that there is session affinity, bpf that hairpin connections can be told by xt_bpf.
func tryNeeds(ctx context.Context, t xtables.Interface) (affinity, bpf bool, err error) {
	lacking, err := xtables.Lacking(ctx, t, probeChain, append(needs[:len(needs):len(needs)], affinityNeed, xtables.NeedBPF))
	if err != nil {
		return true, false, nil // as with a lock that others hold for long: the first sync tells
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
		return affinity, bpf, fmt.Errorf("kernel or userland refuse rules: load the modules %s on the host, or use another mode (%w)", strings.Join(modules, ", "), why)
	}
	return affinity, bpf, nil
}
