package nftables

import (
	"context"
	"errors"
	"strings"

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
		els := c.Elements[name]
		static, ok := staticSet(name)
		if ok && static.Shape(t.family) != sh || els.CatchAll {
			return malformed(), nil
		}
		var ranges []nft.Element
		if !ok {
			ranges = els.All()
		}
		out[ID{Kind: KindSet, Name: name}] = Object{Value: setValue(sh, ranges)}
	}
	for _, name := range []string{setClusterIPs, setEqualBytes, setUnmoved} {
		els := c.Elements[name]
		for i := range els.Len() {
			out[elementID(name, els.At(i).Key)] = Object{}
		}
	}
	for _, name := range []string{setVIPs, setNodePorts} {
		readFrontends(name, c.Elements[name], c.Elements[beside(name)], out)
	}
	for _, ch := range c.Chains {
		out[ID{Kind: KindChain, Name: ch.Name}] = Object{Value: chainValue(ch.Base, ch.Rules)}
	}
	return out, nil
}

// readFrontends puts verdicts and endpoints together.
func readFrontends(name string, verdicts, endpoints nft.Elements, out map[ID]Object) {
	var list []string
	v, e := 0, 0
	for v < verdicts.Len() || e < endpoints.Len() {
		// The next frontend is that of the next verdict, or of an endpoint before it: one without a verdict, which is not of
		// our making.
		var verdict, first nft.Element
		if v < verdicts.Len() {
			verdict = verdicts.At(v)
		}
		if e < endpoints.Len() {
			first = endpoints.At(e)
			first.Key = first.Key[:len(first.Key)-indexLen]
		}
		if e < endpoints.Len() && (v == verdicts.Len() || first.Key < verdict.Key) {
			verdict = nft.Element{Key: first.Key}
		} else {
			v++
		}
		for list = list[:0]; e < endpoints.Len(); e++ {
			el := endpoints.At(e)
			index, ours := strings.CutPrefix(el.Key, verdict.Key)
			if !ours {
				break
			}
			list = append(list, index+el.Value)
		}
		out[ID{Kind: KindFrontend, Name: name, Key: verdict.Key}] = Object{Value: string(newTargets(verdict.Value, list))}
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
