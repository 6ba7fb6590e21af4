package health

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// answer is the body of a response. Down to Status, keys and their order are those of kube-proxy.
type answer struct {
	// LastUpdated is CurrentTime if the code is 200, as monitoring written for old releases
	// expects. Otherwise it is the end of the last sync of the family that was written last.
	LastUpdated time.Time `json:"lastUpdated"`
	CurrentTime time.Time `json:"currentTime"`
	// NodeEligible is only in responses of /healthz.
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status,omitempty"`
	// readiness is only in responses of /readyz.
	*readiness
}

type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// readiness is what /readyz adds to the body of /livez.
type readiness struct {
	Ready bool `json:"ready"`
	// Written says that everything was written to the kernel at least once, Verified that it was
	// then found there.
	Written  bool `json:"written"`
	Verified bool `json:"verified"`
	// Families has the same for each family that the node serves.
	Families map[string]familyReadiness `json:"families"`
	// Quarantined counts the Services that the kernel refuses. The node is ready without them.
	Quarantined int                    `json:"quarantinedServices"`
	Watches     map[string]watchStatus `json:"watches,omitempty"`
	// Notes are for people: what the process waits for, what is unusual about the node.
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
		mux.HandleFunc("/"+endpoint, func(w http.ResponseWriter, _ *http.Request) { s.serve(w, endpoint) })
	}
	return mux
}

func (s *State) serve(w http.ResponseWriter, endpoint string) {
	a, ok := s.answer(endpoint)
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
	_, _ = w.Write(body) // fails only if the client has gone away
}

// answer returns the response of an endpoint and whether it is a success.
func (s *State) answer(endpoint string) (answer, bool) {
	in := s.inputs()
	s.mu.Lock()
	defer s.mu.Unlock()
	a := answer{CurrentTime: in.now, Healthy: s.fresh(in), Status: make(map[string]familyStatus)}
	for i, f := range fwd.Families {
		a.Status[f.String()] = familyStatus{LastUpdated: s.updated[i].UTC(), Healthy: s.familyFresh(f, in)}
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
		a.readiness = s.ready(in)
		a.Ready = a.Ready && ok
		ok = a.Ready
	}
	if ok {
		a.LastUpdated = in.now
	}
	return a, ok
}

// ready returns what /readyz adds. Its Ready does not depend on freshness.
func (s *State) ready(in inputs) *readiness {
	r := &readiness{Written: s.everywhere(s.written), Verified: s.everywhere(s.verified), Quarantined: s.quarantined, Notes: in.notes,
		Families: make(map[string]familyReadiness)}
	r.Ready = r.Written && r.Verified
	if s.standby != "" {
		r.Ready, r.Notes = true, append([]string{s.standby}, in.notes...)
	}
	for i, f := range fwd.Families {
		if s.served[i] {
			r.Families[f.String()] = familyReadiness{Written: s.written[i], Verified: s.verified[i]}
		}
	}
	for _, w := range in.watches {
		if r.Watches == nil {
			r.Watches = make(map[string]watchStatus)
		}
		stale := in.now.Sub(w.LastSeen)
		r.Watches[w.Resource] = watchStatus{Open: w.Open, StaleSeconds: stale.Round(time.Millisecond).Seconds()}
		r.Ready = r.Ready && stale <= StaleAfter
	}
	return r
}
