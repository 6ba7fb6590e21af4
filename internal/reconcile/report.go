package reconcile

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Sync is the report of one attempt to update the kernel, in one family or both.
type Sync struct {
	Start, End time.Time
	// Families has the result of each family, by fwd.Family.Index.
	Families [2]FamilySync
	// Services, Frontends and Endpoints count what is in the table; an endpoint counts once for
	// each service port that it is chosen for. Conflicts counts the keys that a Service claims and
	// another one has.
	Services, Frontends, Endpoints, Conflicts int
	// ServiceEvents and SliceEvents count the changes of objects that this sync took in.
	ServiceEvents, SliceEvents int
	// LocalPolicyEmpty counts, by fwd.Family.Index, service ports whose internal (0) or external
	// (1) policy Local has no endpoint on this node.
	LocalPolicyEmpty [2][2]int
	// Quarantined counts the Services that the kernel refuses.
	Quarantined int
}

// FamilySync is the result of a Sync in one family.
type FamilySync struct {
	// Tried says that the kernel was read or written, or would have been if something had been
	// pending. It is false where the family waits for its next attempt, or has no part in this
	// sync.
	Tried bool
	// End is when that was done.
	End time.Time
	// Failed says that the kernel lacks something because this attempt failed, or an earlier one if
	// Tried is false.
	Failed bool
	// Unread says that the kernel could not be read, so that nothing was written.
	Unread bool
	// Full says that the kernel was read before it was written: at the start, after a failure, and
	// to verify.
	Full bool
	// Applying is how long the backend took to write.
	Applying time.Duration
	// Triggers are the times of the endpoint changes that this sync completed.
	Triggers []time.Time
	// Result counts what was written.
	Result backend.Result
	// Drifted counts objects that other programs had changed; Drift is the hint that led to them,
	// nil for none.
	Drifted int
	Drift   *backend.Drift

	// verified says that everything written before was found in the kernel.
	verified bool
}

// eventful reports whether something was written, or could not be read or written.
func (s *Sync) eventful() bool {
	return slices.ContainsFunc(s.Families[:], func(p FamilySync) bool { return p.Result != backend.Result{} || p.Tried && p.Failed })
}

// outcome is what a sync has achieved, for those who follow the loop.
type outcome struct {
	// written are the families in which everything in the table is in the kernel; first are those
	// in which it is so for the first time, verified those in which a reading found all of it, and
	// nothing had to be repaired.
	written, first, verified []*family
	// recovered says that a family works again, suspect that flows of Services that did not change
	// may be stale.
	recovered, suspect bool
}

// end records how a sync went and reports it. changed says that the table changed.
func (l *Loop) end(ctx context.Context, rep *Sync, changed bool) {
	if ctx.Err() != nil {
		return // the process is shutting down, which is no failure
	}
	rep.End = time.Now()
	rep.Services, rep.Frontends = l.wanted.table.Len()
	out := l.outcome(rep)
	l.settle(rep.End)
	if changed || out.recovered || len(out.first) > 0 || rep.eventful() {
		l.publish(&out)
		l.logSync(rep, len(out.first) > 0)
		l.monitor(rep)
	} else if !l.news.unreported.Empty() {
		l.monitor(rep) // what the events ask for is in the kernel already
	}
	for _, f := range out.first {
		if l.OnWritten != nil {
			l.OnWritten(f.Family)
		}
	}
	for _, f := range out.verified {
		l.verified(f, rep.Start)
	}
}

// outcome updates the families after a sync.
func (l *Loop) outcome(rep *Sync) (out outcome) {
	for _, f := range l.families {
		part := &rep.Families[f.Index()]
		part.Failed = !f.read
		if !part.Tried || part.Failed {
			continue
		}
		out.written = append(out.written, f)
		out.recovered = l.endFailure(f) || out.recovered
		out.suspect = out.suspect || out.recovered || part.Drifted > 0
		if !f.written && len(l.wanted.gradual) == 0 {
			f.written, out.suspect = true, true
			out.first = append(out.first, f)
		}
		switch {
		case !f.written:
		case part.intact():
			out.verified = append(out.verified, f)
		case part.Full && !f.verified: // readiness waits for the next reading
			f.plan.soon(rep.End)
		}
	}
	return out
}

// intact reports whether a reading found everything in the kernel.
func (p *FamilySync) intact() bool {
	return p.verified || p.Full && p.Drifted == 0 && p.Result == (backend.Result{})
}

// publish tells those who depend on the kernel's rules in which families they are written.
func (l *Loop) publish(out *outcome) {
	if len(out.written) == 0 {
		return
	}
	if l.Flows != nil {
		l.Flows.Submit(families(out.written), out.suspect)
	}
	if l.Checks != nil {
		for _, f := range out.written {
			l.Checks.Programmed(f.Family)
		}
	}
}

// families says by fwd.Family.Index which are in the list.
func families(list []*family) (in [2]bool) {
	for _, f := range list {
		in[f.Index()] = true
	}
	return in
}

// verified reports that a reading found everything in the kernel.
func (l *Loop) verified(f *family, at time.Time) {
	if l.Monitor != nil {
		l.Monitor.Verified(f.Family, at)
	}
	if f.verified {
		return
	}
	f.verified = true
	if l.OnVerified != nil {
		l.OnVerified(f.Family)
	}
}

// monitor completes a report and passes it to the Monitor.
func (l *Loop) monitor(rep *Sync) {
	if l.Monitor == nil {
		l.news.unreported = cluster.Drained{}
		return
	}
	rep.Endpoints, rep.Conflicts = l.wanted.endpoints, len(l.reports.conflicts)
	rep.LocalPolicyEmpty = l.wanted.localPolicyEmpty
	rep.Quarantined = l.quarantine.len()
	d := &l.news.unreported
	rep.ServiceEvents, rep.SliceEvents = d.Services, d.Slices
	d.Services, d.Slices = 0, 0
	for i := range rep.Families {
		if part := &rep.Families[i]; l.Backends[i] == nil || part.Tried && !part.Failed && len(l.wanted.gradual) == 0 {
			part.Triggers, d.Triggers[i] = d.Triggers[i], nil
		}
	}
	l.Monitor.Synced(*rep)
}

// logSync logs a sync that wrote something, and the first one of a family.
func (l *Loop) logSync(rep *Sync, first bool) {
	var res backend.Result
	var incomplete, drifted []string
	attrs := []any{"services", rep.Services, "frontends", rep.Frontends}
	drift, objects := backend.Drift{}, 0
	for i, f := range fwd.Families {
		part := rep.Families[i]
		res = res.Add(part.Result)
		if part.Failed {
			incomplete = append(incomplete, f.String())
		}
		if part.Drifted > 0 {
			drifted = append(drifted, f.String())
			objects += part.Drifted
			if part.Drift != nil {
				drift = *part.Drift
			}
		}
	}
	if !first && res == (backend.Result{}) {
		return
	}
	attrs = append(attrs, "written", res.Written, "deleted", res.Deleted, "duration", rep.End.Sub(rep.Start), "backend", string(l.Config.Mode))
	if len(incomplete) > 0 {
		attrs = append(attrs, "incomplete", strings.Join(incomplete, ","))
	}
	if objects == 0 {
		l.log.Info("synced", attrs...)
		return
	}
	attrs = append(attrs, "family", strings.Join(drifted, ","), "objects", objects)
	for _, a := range []struct{ key, value string }{{"changed", drift.What}, {"by", drift.Process}} {
		if a.value != "" {
			attrs = append(attrs, a.key, a.value)
		}
	}
	l.log.Warn("repaired drift", attrs...)
}

// reports remembers what users were told, so that they are told once.
type reports struct {
	// problems are those of the last compilation of each Service that had any.
	problems  map[fwd.Service]string
	conflicts map[fwd.Conflict]struct{}
	warnings  map[string]struct{}
}

func (r *reports) forget(owner fwd.Service) { delete(r.problems, owner) }

func (l *Loop) warn(owner fwd.Service, reason, message string) {
	if l.Events != nil {
		l.Events.Warn(owner, reason, message)
	}
}

// reportProblems reports what cannot be honoured in a Service, when that changed.
func (l *Loop) reportProblems(owner fwd.Service, problems []compile.Problem) {
	if len(problems) == 0 {
		l.reports.forget(owner)
		return
	}
	texts := make([]string, 0, len(problems))
	for _, p := range problems {
		texts = append(texts, p.Field+": "+p.Message)
	}
	text := strings.Join(texts, "; ")
	if l.reports.problems[owner] == text {
		return
	}
	l.reports.problems[owner] = text
	l.log.Warn("part of a Service cannot be honoured", "service", owner.String(), "problems", text)
	l.warn(owner, "NotHonoured", text)
}

// reportConflicts reports keys that two Services claim, when that changed.
func (l *Loop) reportConflicts() {
	now := make(map[fwd.Conflict]struct{})
	for _, c := range l.wanted.table.Conflicts() {
		now[c] = struct{}{}
		if _, known := l.reports.conflicts[c]; known {
			continue
		}
		l.log.Warn("two Services claim the same address and port", "key", c.Key.String(), "winner", c.Winner.String(), "loser", c.Loser.String())
		l.warn(c.Loser, "Conflict", c.Key.String()+" belongs to Service "+c.Winner.String())
	}
	l.reports.conflicts = now
}

// reportWarnings logs new warnings about the configuration.
func (l *Loop) reportWarnings(warnings []string) {
	now := make(map[string]struct{})
	for _, w := range warnings {
		now[w] = struct{}{}
		if _, known := l.reports.warnings[w]; !known {
			l.log.Warn(w)
		}
	}
	l.reports.warnings = now
}
