package health

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// answer is the body of an answer; keys and their order are kube-proxy's down to Status.
type answer struct {
	// LastUpdated is CurrentTime in an answer 200, as monitoring written for old releases expects; else the end of the last sync
	// of the family that was written last.
	LastUpdated time.Time `json:"lastUpdated"`
	CurrentTime time.Time `json:"currentTime"`
	// NodeEligible is only in answers of /healthz.
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status,omitempty"`
	// readiness is only in answers of /readyz.
	*readiness
}

// familyStatus is the part of an answer that is about one family.
type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// readiness is what /readyz says beside what /livez says.
type readiness struct {
	Ready bool `json:"ready"`
	// Written says that everything was written to the kernel once, Verified that a reading found it there.
	Written  bool `json:"written"`
	Verified bool `json:"verified"`
	// Families says the same of each family that the node serves.
	Families map[string]familyReadiness `json:"families"`
	// Quarantined counts the Services that the kernel refuses; they do not keep a node from being ready.
	Quarantined int                    `json:"quarantinedServices"`
	Watches     map[string]watchStatus `json:"watches,omitempty"`
	// Notes are for people: what is waited for, what is odd about the node.
	Notes []string `json:"notes,omitempty"`
}

type familyReadiness struct {
	Written  bool `json:"written"`
	Verified bool `json:"verified"`
}

type watchStatus struct {
	Open         bool    `json:"open"`
	StaleSeconds float64 `json:"staleSeconds"`
}

// Handler serves /healthz, /livez and /readyz.
func (s *State) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, endpoint := range []string{"healthz", "livez", "readyz"} {
		mux.HandleFunc("/"+endpoint, func(w http.ResponseWriter, _ *http.Request) { s.answer(w, endpoint) })
	}
	return mux
}

func (s *State) answer(w http.ResponseWriter, endpoint string) {
	a, ok := s.judge(endpoint, time.Now().UTC())
	body, err := json.Marshal(a)
	if err != nil {
		panic("BUG: " + err.Error()) // times, strings, numbers and booleans only
	}
	code := http.StatusOK
	if !ok {
		code = http.StatusServiceUnavailable
	}
	if s.o.Answered != nil {
		s.o.Answered(endpoint, code)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that went away has no use for an error
}

// judge works out the answer of an endpoint at that time, and whether it is a good one.
func (s *State) judge(endpoint string, now time.Time) (answer, bool) {
	at := s.look(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := answer{CurrentTime: now, Healthy: s.fresh(at), Status: make(map[string]familyStatus)}
	for i, f := range fwd.Families {
		a.Status[f.String()] = familyStatus{LastUpdated: s.updated[i].UTC(), Healthy: s.familyFresh(f, at)}
		if s.updated[i].After(a.LastUpdated) {
			a.LastUpdated = s.updated[i].UTC()
		}
	}
	ok := a.Healthy
	switch endpoint {
	case "healthz":
		eligible := !s.leaving
		a.NodeEligible = &eligible
		ok = ok && eligible
	case "readyz":
		a.readiness = s.ready(at)
		a.Ready = a.Ready && ok
		ok = a.Ready
	}
	if ok {
		a.LastUpdated = now
	}
	return a, ok
}

// ready says what /readyz adds; Ready leaves freshness out.
func (s *State) ready(at moment) *readiness {
	r := &readiness{Written: covers(s.written, at.served), Verified: covers(s.verified, at.served), Quarantined: s.quarantined, Notes: at.notes,
		Families: make(map[string]familyReadiness)}
	r.Ready = at.standby || r.Written && r.Verified
	for i, f := range fwd.Families {
		if at.served[i] {
			r.Families[f.String()] = familyReadiness{Written: s.written[i], Verified: s.verified[i]}
		}
	}
	for _, w := range at.watches {
		if r.Watches == nil {
			r.Watches = make(map[string]watchStatus)
		}
		stale := at.now.Sub(w.LastSeen)
		r.Watches[w.Resource] = watchStatus{Open: w.Open, StaleSeconds: stale.Round(time.Millisecond).Seconds()}
		r.Ready = r.Ready && stale <= StaleAfter
	}
	return r
}
