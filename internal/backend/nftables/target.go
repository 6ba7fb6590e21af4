package nftables

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// target reads and writes the table of one family.
type target struct {
	family fwd.Family
	table  nft.Interface
	// chunk is the maximum number of elements in a transaction that can be split.
	chunk int
	// renderer knows which Services the objects belong to.
	renderer *renderer
	// found, if not nil, records the frontends that were read.
	found *backend.Found
	// log, if not nil, gets warnings about session affinity.
	log *slog.Logger
	// full says that the affinity set was full when it was last checked.
	full atomic.Bool
}

type plan = backend.Plan[ID, Object]

// Read implements backend.Target.
func (t *target) Read(ctx context.Context) (map[ID]Object, error) {
	c, err := t.table.Read(ctx)
	if err != nil {
		return nil, err
	}
	if !c.Exists {
		return make(map[ID]Object), nil
	}
	out := objectsIn(t.family, c)
	if t.found != nil {
		t.found.Record(t.family, func(yield func(fwd.Key)) {
			for id := range out {
				if id.Kind == KindFrontend {
					yield(keyOf(t.family, id))
				}
			}
		})
	}
	if t.log != nil && slices.ContainsFunc(c.Chains, func(ch nft.Chain) bool { return strings.HasPrefix(ch.Name, affinityPrefix) }) {
		t.warnIfFull(ctx)
	}
	return out, nil
}

// objectsIn returns the objects of a table that was read. A table with something that we did not
// make and that cannot be changed in place is one malformed object, which is replaced as a whole.
func objectsIn(fam fwd.Family, c nft.Content) map[ID]Object {
	out := map[ID]Object{{Kind: KindTable}: tableObject}
	for name, sh := range c.Sets {
		els := c.Elements[name]
		static, ok := staticSet(name)
		if ok && static.Shape(fam) != sh || els.CatchAll {
			return map[ID]Object{{Kind: KindTable}: {Value: "malformed"}}
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
		readFrontends(name, c.Elements[name], c.Elements[endpointsOf(name)], out)
	}
	for _, ch := range c.Chains {
		out[ID{Kind: KindChain, Name: ch.Name}] = Object{Value: chainValue(ch.Base, ch.Rules)}
	}
	return out
}

// warnIfFull logs when session affinity cannot remember more clients. It asks the kernel whether
// the set would take one more element: counting them takes the kernel a minute if there are many.
func (t *target) warnIfFull(ctx context.Context) {
	set, _ := staticSet(setAffinity)
	key := string(make([]byte, nft.Len(t.family, set.Key))) // of no client
	err := t.table.Check(ctx, []nft.Op{{Kind: nft.AddElements, Name: setAffinity, Set: set, Elements: []nft.Element{{Key: key}}}})
	if full := errors.Is(err, unix.ENFILE); !t.full.Swap(full) && full {
		t.log.Warn("session affinity cannot remember more clients; new clients are served by any endpoint until others time out",
			"family", t.family.String(), "clients", affinitySize)
	}
}

// readFrontends joins verdicts with their endpoints.
func readFrontends(name string, verdicts, endpoints nft.Elements, out map[ID]Object) {
	var list []string
	v, e := 0, 0
	for v < verdicts.Len() || e < endpoints.Len() {
		// The next frontend is that of the next verdict, or that of an endpoint before it, which
		// has no verdict: somebody else added it.
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
