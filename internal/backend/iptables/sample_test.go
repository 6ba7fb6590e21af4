package iptables

import (
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

func sortedFrontends(f []fwd.Frontend) []fwd.Frontend {
	slices.SortFunc(f, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	return f
}

func sortedPools(p []fwd.Pool) []fwd.Pool {
	slices.SortFunc(p, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
	return p
}
