package nftables

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// owning says whose objects are whose.
type owning interface {
	// owner is the Service that a frontend or a chain of session affinity belongs to.
	owner(ID) (fwd.Service, bool)
	// partsOf lists the shared objects that a frontend with this verdict leads to.
	partsOf(verdict string) []ID
}

// culprits finds the Services whose objects the kernel refuses. It has the kernel check the objects of ever smaller halves
// of those that are in the refused message, with what they need and with the Services that were found to be good; nothing is
// written. Small Services come first, so that where there is no room for all it is the largest that has to go. There are none
// if the kernel refuses what belongs to nobody.
func (t *target) culprits(ctx context.Context, p plan, refusal *nft.Error) []fwd.Service {
	s := search{target: t, plan: p, owned: make(map[fwd.Service][]ID)}
	for id, o := range p.Upserts {
		owner, ok := t.owning.owner(id)
		if !ok {
			continue
		}
		s.owned[owner] = append(s.owned[owner], id)
		if id.Kind == KindFrontend {
			s.owned[owner] = append(s.owned[owner], t.owning.partsOf(targets(o.Value).verdict())...)
		}
	}
	if s.refused(ctx, nil) {
		return nil
	}
	suspects := slices.SortedFunc(maps.Keys(s.owned), func(a, b fwd.Service) int {
		return cmp.Or(cmp.Compare(len(s.owned[a]), len(s.owned[b])), a.Compare(b))
	})
	at := slices.DeleteFunc(slices.Clone(suspects), func(o fwd.Service) bool { return !touches(refusal, s.owned[o]) })
	if s.find(ctx, at); len(s.found) == 0 && len(at) < len(suspects) {
		s.good = nil
		s.find(ctx, suspects) // what is at fault may show elsewhere
	}
	return s.found
}

// touches says whether one of the objects may be what was refused.
func touches(refusal *nft.Error, ids []ID) bool {
	keys := make(map[string]bool, len(refusal.Elements))
	for _, e := range refusal.Elements {
		keys[e.Key] = true
		if refusal.Name == endpointsOf(setVIPs) || refusal.Name == endpointsOf(setNodePorts) {
			keys[e.Key[:len(e.Key)-indexLen]] = true
		}
	}
	return slices.ContainsFunc(ids, func(id ID) bool {
		if id.Kind == KindFrontend {
			return (refusal.Name == id.Name || refusal.Name == endpointsOf(id.Name)) && keys[id.Key]
		}
		return refusal.Name == id.Name
	})
}

// search is one search for culprits.
type search struct {
	*target
	plan plan
	// owned are the objects of each Service that are to be written, and the shared ones that it needs.
	owned map[fwd.Service][]ID
	// found are the culprits, good those that the kernel takes together.
	found, good []fwd.Service
}

func (s *search) find(ctx context.Context, suspects []fwd.Service) {
	switch {
	case len(suspects) == 0 || ctx.Err() != nil:
	case !s.refused(ctx, suspects):
		s.good = append(s.good, suspects...)
	case len(suspects) == 1:
		s.found = append(s.found, suspects[0])
	default:
		s.find(ctx, suspects[:len(suspects)/2])
		s.find(ctx, suspects[len(suspects)/2:])
	}
}

// refused says whether the kernel refuses the objects of some Services beside those of the good ones. What is too large to
// be asked about counts as refused.
func (s *search) refused(ctx context.Context, services []fwd.Service) bool {
	err := s.check(ctx, slices.Concat(s.good, services))
	if errors.Is(err, nft.ErrTooLarge) {
		err = s.check(ctx, services)
	}
	var ne *nft.Error
	return errors.Is(err, nft.ErrTooLarge) || errors.As(err, &ne) && ne.Refused()
}

// check asks about the objects of some Services, together with those of nobody in particular: the table, its own chains, and
// its own sets.
func (s *search) check(ctx context.Context, services []fwd.Service) error {
	some := plan{Upserts: make(map[ID]Object), Actual: s.plan.Actual}
	want := func(id ID) {
		o, ok := s.plan.Upserts[id]
		if was, there := s.plan.Actual(id); ok && !(there && sameValue(o, was)) { // not what was written before the refusal
			some.Upserts[id] = o
		}
	}
	for id := range s.plan.Upserts {
		_, static := staticSet(id.Name)
		if id.Kind == KindTable || id.Kind == KindSet && (static || strings.HasPrefix(id.Name, setServiceCIDRs)) || id.Kind == KindChain && isStatic(id.Name) {
			want(id)
		}
	}
	for _, owner := range services {
		for _, id := range s.owned[owner] {
			want(id)
		}
	}
	var ops []nft.Op
	for _, st := range steps(s.family, some, math.MaxInt) {
		ops = append(ops, st.ops...)
	}
	return s.table.Check(ctx, ops)
}
