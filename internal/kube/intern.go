package kube

import (
	"strings"

	"github.com/fairlead/fairlead/internal/cluster"
)

// maxInterned bounds what an interner holds on to. One cluster has fewer node names, zones, namespaces and port names.
const maxInterned = 1 << 16

// interner keeps one copy of what repeats across objects: a node with its zone is in every EndpointSlice with an endpoint on
// the node. A nil interner keeps nothing. It belongs to one goroutine.
//
// The standard package unique is not used here since it forgets a string as soon as nobody holds its Handle, and the
// values of package cluster hold plain strings.
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

// place shares a Place; nil is the empty one.
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
