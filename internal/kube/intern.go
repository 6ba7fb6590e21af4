package kube

import (
	"strings"

	"github.com/fairlead/fairlead/internal/cluster"
)

// maxInterned limits the number of strings that an interner keeps. A cluster has fewer node names,
// zones, namespaces and port names.
const maxInterned = 1 << 16

// interner keeps one copy of strings that many objects have: a node and its zone are in every
// EndpointSlice with an endpoint on the node. A nil interner keeps nothing. It belongs to one
// goroutine.
//
// The standard package unique forgets a string when there are no Handles for it; the values of
// package cluster hold plain strings.
type interner struct {
	strings map[string]string
	places  map[placeKey]*cluster.Place
}

// placeKey is a cluster.Place with its lists joined.
type placeKey struct{ node, zone, zoneHints, nodeHints string }

func newInterner() *interner {
	return &interner{strings: make(map[string]string), places: make(map[placeKey]*cluster.Place)}
}

func (in *interner) str(s string) string {
	if in == nil || s == "" {
		return s
	}
	if known, ok := in.strings[s]; ok {
		return known
	}
	if len(in.strings) >= maxInterned {
		clear(in.strings)
	}
	in.strings[s] = s
	return s
}

// place returns a shared copy of a Place; nil for the empty one.
func (in *interner) place(p cluster.Place) *cluster.Place {
	const sep = "\x00"
	k := placeKey{p.Node, p.Zone, strings.Join(p.ZoneHints, sep), strings.Join(p.NodeHints, sep)}
	if k == (placeKey{}) {
		return nil
	}
	if in == nil {
		return &p
	}
	if known, ok := in.places[k]; ok {
		return known
	}
	if len(in.places) >= maxInterned {
		clear(in.places)
	}
	in.places[k] = &p
	return &p
}
