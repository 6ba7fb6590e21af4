package iptables

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// lackingTables are the tables of a kernel without some matches.
type lackingTables struct {
	*rulesim.Tables
	matches []string
}

func (w lackingTables) Restore(ctx context.Context, input []byte) error {
	for _, m := range w.matches {
		if strings.Contains(string(input), m) {
			return &xtables.RestoreError{Err: errors.New("no " + m)}
		}
	}
	return w.Tables.Restore(ctx, input)
}

func TestNeeds(t *testing.T) {
	for _, tt := range []struct {
		name     string
		lacks    []string
		affinity bool
		bpf      bool
		want     []string
	}{
		{"all is there", nil, true, true, nil},
		{"no affinity", []string{"recent"}, false, true, nil},
		{"no BPF", []string{"bpf"}, true, false, nil},
		{"no mode", []string{"statistic", "REJECT", "bpf"}, true, false, []string{"ipt_REJECT or ip6t_REJECT, xt_statistic", "no REJECT"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			affinity, bpf, err := tryNeeds(t.Context(), lackingTables{&rulesim.Tables{Rules: rulesim.New(fwd.IPv4)}, tt.lacks})
			if affinity != tt.affinity || bpf != tt.bpf || (err != nil) != (tt.want != nil) {
				t.Errorf("affinity %v, BPF %v, error %v", affinity, bpf, err)
			}
			for _, part := range tt.want {
				if err != nil && !strings.Contains(err.Error(), part) {
					t.Errorf("error %v does not say %q", err, part)
				}
			}
		})
	}
}

func TestNeedsOnTheKernel(t *testing.T) {
	hosttest.Netns(t, "iptables")
	for _, fl := range xtables.Installed() {
		for _, ipv6 := range []bool{false, true} {
			x, err := xtables.New(fl, ipv6)
			if err != nil {
				t.Fatal(err)
			}
			if affinity, bpf, err := tryNeeds(t.Context(), x); err != nil || !affinity || !bpf {
				t.Errorf("%s, IPv6 %v: affinity %v, BPF %v, %v", fl, ipv6, affinity, bpf, err)
			}
		}
	}
}
