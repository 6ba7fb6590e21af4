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

// culprits finds the Services whose objects the kernel refuses. It has the kernel check, without
// writing anything, the objects of ever smaller halves of the Services in the refused message,
// together with what they need and with the Services that passed. Small Services come first, so
// that if there is no room for all, the largest is named. If the kernel refuses objects that belong
// to no Service, there are no culprits.
func (t *target) culprits(ctx context.Context, p plan, refusal *nft.Error) []fwd.Service {
	s := search{target: t, plan: p, objects: make(map[fwd.Service][]ID)}
	for id, o := range p.Upserts {
		owner, ok := t.renderer.owners[id]
		if !ok {
			continue
		}
		s.objects[owner] = append(s.objects[owner], id)
		if id.Kind == KindFrontend {
			s.objects[owner] = append(s.objects[owner], t.renderer.partsOf(targets(o.Value).verdict())...)
		}
	}
	if s.refused(ctx, nil) {
		return nil
	}
	all := slices.SortedFunc(maps.Keys(s.objects), func(a, b fwd.Service) int {
		return cmp.Or(cmp.Compare(len(s.objects[a]), len(s.objects[b])), a.Compare(b))
	})
	suspects := slices.DeleteFunc(slices.Clone(all), func(o fwd.Service) bool { return !concerns(refusal, s.objects[o]) })
	if s.find(ctx, suspects); len(s.found) == 0 && len(suspects) < len(all) {
		s.good = nil
		s.find(ctx, all) // the error may show at another object than its cause
	}
	return s.found
}

// concerns reports whether one of the objects may be what was refused.
func concerns(refusal *nft.Error, ids []ID) bool {
	keys := make(map[string]bool, len(refusal.Elements))
	for _, e := range refusal.Elements {
		keys[e.Key] = true
		if refusal.Name == setEndpoints || refusal.Name == setNodePortEndpoints {
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
	// objects are those of each Service that are to be written, and the parts that they need.
	objects map[fwd.Service][]ID
	// found are the culprits, good the Services that the kernel accepts together.
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

// refused reports whether the kernel refuses the objects of some Services in addition to those of
// the good ones. What is too large for one transaction counts as refused.
func (s *search) refused(ctx context.Context, services []fwd.Service) bool {
	err := s.check(ctx, slices.Concat(s.good, services))
	if errors.Is(err, nft.ErrTooLarge) {
		err = s.check(ctx, services)
	}
	var ne *nft.Error
	return errors.Is(err, nft.ErrTooLarge) || errors.As(err, &ne) && ne.Refused()
}

// check has the kernel check the objects of some Services, together with those of no Service: the
// table, its static chains and its static sets.
func (s *search) check(ctx context.Context, services []fwd.Service) error {
	some := plan{Upserts: make(map[ID]Object), Actual: s.plan.Actual}
	want := func(id ID) {
		o, ok := s.plan.Upserts[id]
		if was, exists := s.plan.Actual(id); ok && !(exists && sameValue(o, was)) { // not what was written before the refusal
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
		for _, id := range s.objects[owner] {
			want(id)
		}
	}
	var ops []nft.Op
	for _, st := range steps(s.family, some, math.MaxInt) {
		ops = append(ops, st.ops...)
	}
	return s.table.Check(ctx, ops)
}
