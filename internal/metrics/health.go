package metrics

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// familyHealth is the part of an answer that is about one family.
type familyHealth struct {
	LastUpdated string `json:"lastUpdated"`
	Healthy     bool   `json:"healthy"`
}

// health is an answer; its keys are kube-proxy's.
type health struct {
	LastUpdated string `json:"lastUpdated"`
	CurrentTime string `json:"currentTime"`
	// NodeEligible is only in answers of /healthz.
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status"`
	// Ready and Quarantined are only in answers of /readyz.
	Ready       *bool `json:"ready,omitempty"`
	Quarantined *int  `json:"quarantinedServices,omitempty"`
}

// HealthHandler serves /healthz, /livez and /readyz.
func (m *Monitor) HealthHandler() http.Handler {
	mux := http.NewServeMux()
	for _, endpoint := range []string{"healthz", "livez", "readyz"} {
		mux.HandleFunc("/"+endpoint, func(w http.ResponseWriter, _ *http.Request) { m.answer(w, endpoint) })
	}
	return mux
}

func (m *Monitor) answer(w http.ResponseWriter, endpoint string) {
	h, ok := m.health(endpoint, time.Now())
	body, err := json.Marshal(h)
	if err != nil {
		panic("BUG: " + err.Error()) // strings and booleans only
	}
	code := http.StatusOK
	if !ok {
		code = http.StatusServiceUnavailable
	}
	m.vectors.answered(endpoint, code)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that went away has no use for an error
}

// health works out the answer of an endpoint at that time, and whether it is a good one.
func (m *Monitor) health(endpoint string, now time.Time) (health, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := health{CurrentTime: now.String(), Healthy: true, Status: make(map[string]familyHealth)}
	oldest := now
	for i, f := range fwd.Families {
		fresh := m.pendingSince[i].IsZero() || now.Sub(m.pendingSince[i]) <= m.deadline
		h.Healthy = h.Healthy && fresh
		updated := now // a fresh family is up to date now, as consumers of the old form expect
		if !fresh {
			updated = m.updated[i]
		}
		if updated.Before(oldest) {
			oldest = updated
		}
		h.Status[f.String()] = familyHealth{LastUpdated: updated.String(), Healthy: fresh}
	}
	h.LastUpdated = oldest.String()
	switch endpoint {
	case "healthz":
		eligible := !m.leaving
		h.NodeEligible = &eligible
		return h, h.Healthy && eligible
	case "readyz":
		ready, quarantined := m.ready, m.quarantined
		h.Ready, h.Quarantined = &ready, &quarantined
		return h, h.Healthy && ready
	}
	return h, h.Healthy
}
