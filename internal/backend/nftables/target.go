package nftables

import (
	"context"
	"errors"
	"slices"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// target reads and writes the table of one family.
type target struct {
	family fwd.Family
	table  nft.Interface
	// chunk is how many elements a transaction may write, where there is a choice.
	chunk int
	// owning tells whom to blame.
	owning owning
}

type plan = backend.Plan[ID, Object]

// malformed is a table in which something is not as we make it and cannot be changed in place: it is replaced as a whole.
func malformed() map[ID]Object { return map[ID]Object{{Kind: KindTable}: {Value: "malformed"}} }

// Read implements backend.Target.
func (t *target) Read(ctx context.Context) (map[ID]Object, error) {
	c, err := t.table.Read(ctx)
	if err != nil {
		return nil, err
	}
	if !c.Exists {
		return make(map[ID]Object), nil
	}
	out := map[ID]Object{{Kind: KindTable}: tableObject}
	for name, sh := range c.Sets {
		static, ok := staticSet(name)
		if ok && static.Shape(t.family) != sh {
			return malformed(), nil
		}
		var ranges []nft.Element
		if !ok {
			ranges = c.Elements[name]
		}
		out[ID{Kind: KindSet, Name: name}] = Object{Value: setValue(sh, ranges)}
	}
	for _, e := range c.Elements[setClusterIPs] {
		out[elementID(setClusterIPs, e.Key)] = Object{}
	}
	readHairpin(c.Elements[setHairpin], out)
	for _, name := range []string{setVIPs, setNodePorts} {
		readFrontends(name, c.Elements[name], c.Elements[beside(name)], out)
	}
	for _, ch := range c.Chains {
		out[ID{Kind: KindChain, Name: ch.Name}] = Object{Value: chainValue(ch.Base, ch.Rules)}
	}
	return out, nil
}

// readHairpin puts addresses together that differ in the last byte alone.
func readHairpin(els []nft.Element, out map[ID]Object) {
	lists := make(map[ID][]byte)
	for _, e := range els {
		id, last, ok := hairpinOf(e.Key)
		if !ok { // not of our making
			out[elementID(setHairpin, e.Key)] = Object{}
			continue
		}
		lists[id] = append(lists[id], last)
	}
	for id, list := range lists {
		slices.Sort(list)
		out[id] = Object{Value: string(list)}
	}
}

// readFrontends puts verdicts and endpoints together.
func readFrontends(name string, verdicts, endpoints []nft.Element, out map[ID]Object) {
	lists := make(map[string][]string, len(verdicts))
	for _, e := range endpoints {
		cut := len(e.Key) - indexLen
		lists[e.Key[:cut]] = append(lists[e.Key[:cut]], e.Key[cut:]+e.Value)
	}
	for _, e := range verdicts {
		out[ID{Kind: KindFrontend, Name: name, Key: e.Key}] = Object{Value: string(newTargets(e.Value, lists[e.Key]))}
		delete(lists, e.Key)
	}
	for key, list := range lists { // without a verdict: not of our making
		out[ID{Kind: KindFrontend, Name: name, Key: key}] = Object{Value: string(newTargets("", list))}
	}
}

// Write implements backend.Target; see order.go for the steps.
func (t *target) Write(ctx context.Context, p plan, done func(ID)) error {
	for _, s := range steps(t.family, p, t.chunk) {
		if err := t.table.Commit(ctx, s.ops); err != nil {
			fe := &backend.FamilyError{Family: t.family, Err: err}
			var ne *nft.Error
			if errors.As(err, &ne) && ne.Refused() {
				fe.Refused, fe.Culprits = true, t.culprits(ctx, p, ne)
			}
			return fe
		}
		for _, id := range s.completes {
			done(id)
		}
	}
	return nil
}
