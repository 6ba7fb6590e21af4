package reconcile

import (
	"log/slog"
	"slices"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// refusal is what is remembered of a Service that the kernel refused.
type refusal struct {
	// answer is what the kernel or its tools said; it was reported.
	answer string
	// onTrial says that the Service is in the table again.
	onTrial bool
}

// quarantine holds the Services that the kernel refuses, so that they do not stand in the way of the others.
type quarantine struct {
	held map[fwd.Service]*refusal
}

// culprit is one Service that was refused, and the answer.
type culprit struct {
	owner fwd.Service
	err   error
}

// culprits finds who was refused, each once.
func culprits(err error) []culprit {
	fes, _ := familyErrors(err)
	var out []culprit
	for _, fe := range fes {
		if !fe.Refused {
			continue
		}
		for _, s := range fe.Culprits {
			if !slices.ContainsFunc(out, func(c culprit) bool { return c.owner == s }) {
				out = append(out, culprit{s, fe})
			}
		}
	}
	return out
}

// setAside takes a refused Service out of the table. It reports whether it was in there.
func (l *Loop) setAside(owner fwd.Service, answer error) bool {
	if !l.update(l.table.Remove(owner)) {
		return false
	}
	old := l.quarantine.held[owner]
	l.quarantine.held[owner] = &refusal{answer: answer.Error()}
	if old == nil || old.answer != answer.Error() {
		l.log.Error("the kernel refuses a Service, it is left out", "service", owner.String(), "answer", answer)
		l.warn(owner, "Quarantined", "The node's kernel refuses the rules of this Service, it is left out: "+answer.Error())
	}
	return true
}

// release puts all refused Services on trial again. It reports whether there were any.
func (l *Loop) release() bool {
	any := false
	for owner, r := range l.quarantine.held {
		if !r.onTrial {
			r.onTrial = true
			any = l.compile(cluster.ServiceName(owner)) || any
		}
	}
	return any
}

// forget ends the quarantine of a Service whose objects changed.
func (q *quarantine) forget(owner fwd.Service) { delete(q.held, owner) }

// settle ends the quarantine of those that were accepted.
func (q *quarantine) settle(log *slog.Logger) {
	for owner, r := range q.held {
		if r.onTrial {
			delete(q.held, owner)
			log.Info("the kernel accepts the Service again", "service", owner.String())
		}
	}
}
