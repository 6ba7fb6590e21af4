package backendtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// world is a Subject with the table that it is meant to follow.
type world struct {
	subject Subject
	backend backend.Families
	table   *fwd.Table
	header  fwd.Header
	// frags are the fragments as they were put.
	frags map[fwd.Service]*fwd.Fragment
}

// newWorld returns a world in which the header is known and the kernel was observed once, as the
// loop does it.
func newWorld(newSubject func(fwd.Header) Subject, h fwd.Header) (*world, error) {
	w := &world{subject: newSubject(h), frags: make(map[fwd.Service]*fwd.Fragment), header: h}
	w.backend = w.subject.Backend()
	return w, w.load(nil)
}

// load observes the kernel and gives a new backend the header and all fragments, in random order if
// there is an r.
func (w *world) load(r *rand.Rand) error {
	w.table = &fwd.Table{}
	if _, err := w.backend.Observe(context.Background()); err != nil {
		return fmt.Errorf("first Observe: %w", err)
	}
	w.backend.Update(w.table.SetHeader(w.header))
	owners := slices.SortedFunc(maps.Keys(w.frags), fwd.Service.Compare)
	if r != nil {
		r.Shuffle(len(owners), func(i, j int) { owners[i], owners[j] = owners[j], owners[i] })
	}
	for _, o := range owners {
		w.backend.Update(w.table.Put(w.frags[o]))
	}
	return nil
}

// restart goes on with a new process on the same kernel.
func (w *world) restart(r *rand.Rand) error {
	w.backend = w.subject.Restart()
	return w.load(r)
}

func (w *world) setHeader(h fwd.Header) {
	w.header = h
	w.backend.Update(w.table.SetHeader(h))
}

func (w *world) put(f *fwd.Fragment) {
	w.frags[f.Owner] = f
	w.backend.Update(w.table.Put(f))
}

func (w *world) remove(s fwd.Service) {
	delete(w.frags, s)
	w.backend.Update(w.table.Remove(s))
}

func (w *world) apply() (backend.Result, error) {
	res, err := w.backend.Apply(context.Background())
	if err != nil {
		err = fmt.Errorf("Apply: %w", err)
	}
	return res, err
}

// idle checks that an Apply writes nothing.
func (w *world) idle(when string) error {
	before := w.subject.Writes()
	res, err := w.apply()
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", when, err)
	case res != backend.Result{}:
		return fmt.Errorf("%s: Apply wrote %d and deleted %d objects, want none", when, res.Written, res.Deleted)
	case w.subject.Writes() != before:
		return fmt.Errorf("%s: Apply made %d write calls, want none", when, w.subject.Writes()-before)
	}
	return nil
}

// want is what the kernel must do with a packet, given what the table says.
func (w *world) want(p fwd.Packet, o fwd.Outcome) (out []Outcome) {
	out = outcomes(p, o)
	defer func() {
		for i := range out {
			if out[i].Masquerade {
				out[i].Source = w.header.MasqueradeSource[fwd.FamilyOf(p.Src).Index()]
			}
		}
	}()
	if d, ok := w.subject.(Deviating); ok {
		out = d.Deviate(w.table, p, out)
	}
	return out
}

// agree checks that the kernel does with packets what the table says.
func (w *world) agree(packets []fwd.Packet) error {
	for _, p := range packets {
		got, err := w.subject.Judge(p)
		if err != nil {
			return fmt.Errorf("packet %+v: %w", p, err)
		}
		o := w.table.Lookup(p)
		if err := w.compare(p, o, got); err != nil {
			return fmt.Errorf("packet %+v, %s frontend %v of %v, reason %s:\n%w", p, o.Class, o.Key, o.Owner, o.Reason, err)
		}
	}
	return nil
}

// unseen says that it does not matter whether the source of a packet is rewritten, whatever the
// table says, since it stays on this host. One from elsewhere never comes to where source addresses
// are rewritten, and the reply needs no detour. One of this host that is sent where it was to go
// anyway has nothing translated.
func (w *world) unseen(p fwd.Packet, endpoint netip.AddrPort) bool {
	return w.header.IsLocal(endpoint.Addr()) && (p.InInterface != "" || endpoint == p.Dst)
}

// outcomes lists what Lookup says may happen to a packet.
func outcomes(p fwd.Packet, o fwd.Outcome) []Outcome {
	if o.Verdict != fwd.VerdictForward {
		return []Outcome{{Verdict: o.Verdict, Reset: o.Verdict == fwd.VerdictReject && p.Proto == fwd.TCP, Probability: 1}}
	}
	total := 0.0
	for _, e := range o.Endpoints {
		total += float64(e.Weight)
	}
	out := make([]Outcome, len(o.Endpoints))
	for i, e := range o.Endpoints {
		out[i] = Outcome{Verdict: o.Verdict, Endpoint: e.Addr, Masquerade: o.MasqueradeTo(p.Src, e.Addr), Probability: float64(e.Weight) / total}
	}
	return out
}

// tolerance is how far a probability may be from the share of its weight: kernels count in whole
// numbers.
const tolerance = 1e-6

// compare says in what the outcomes of a packet differ from what is wanted; probabilities below
// zero are not compared.
func (w *world) compare(p fwd.Packet, o fwd.Outcome, got []Outcome) error {
	want := w.want(p, o)
	type key struct {
		verdict    fwd.Verdict
		endpoint   netip.AddrPort
		masquerade bool
		source     netip.Addr
		reset      bool
	}
	keyOf := func(o Outcome) key {
		k := key{verdict: o.Verdict, endpoint: o.Endpoint, reset: o.Reset}
		if !w.unseen(p, o.Endpoint) {
			k.masquerade, k.source = o.Masquerade, o.Source
		}
		return k
	}
	wanted := make(map[key]Outcome)
	for _, o := range want {
		wanted[keyOf(o)] = o
	}
	var errs []error
	for _, o := range got {
		match, ok := wanted[keyOf(o)]
		delete(wanted, keyOf(o))
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("\tnot wanted: %v", o))
		case o.Probability >= 0 && math.Abs(o.Probability-match.Probability) > tolerance:
			errs = append(errs, fmt.Errorf("\twanted %v, got p=%.7f", match, o.Probability))
		}
	}
	for _, o := range want {
		if _, missing := wanted[keyOf(o)]; missing {
			errs = append(errs, fmt.Errorf("\tmissing: %v", o))
		}
	}
	if len(errs) > 6 {
		errs = append(errs[:6], fmt.Errorf("\tand %d more", len(errs)-6))
	}
	return errors.Join(errs...)
}

// scratch returns the Dump of a fresh backend that is given the final table at once.
func (w *world) scratch(newSubject func(fwd.Header) Subject) (string, error) {
	fresh, err := newWorld(newSubject, w.header)
	if err != nil {
		return "", err
	}
	for _, o := range slices.SortedFunc(maps.Keys(w.frags), fwd.Service.Compare) {
		fresh.put(w.frags[o])
	}
	if _, err := fresh.apply(); err != nil {
		return "", fmt.Errorf("from scratch: %w", err)
	}
	return fresh.subject.Dump(), nil
}

// asFromScratch checks that the kernel holds what a fresh backend writes.
func (w *world) asFromScratch(newSubject func(fwd.Header) Subject) error {
	want, err := w.scratch(newSubject)
	if err != nil {
		return err
	}
	if got := w.subject.Dump(); got != want {
		return fmt.Errorf("the kernel does not hold what a fresh backend writes:\n%s", firstDifferences(want, got))
	}
	return nil
}
