package health

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

func get(t *testing.T, h http.Handler, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestEndpoints(t *testing.T) {
	const ok, bad = http.StatusOK, http.StatusServiceUnavailable
	type step = func(*State, *cluster.Watch)
	wait := func(d time.Duration) step { return func(*State, *cluster.Watch) { time.Sleep(d) } }
	queued := func(s *State, _ *cluster.Watch) { s.Queued(time.Now()) }
	synced := func(v4, v6 bool) step {
		return func(s *State, _ *cluster.Watch) {
			s.Synced(time.Now(), time.Now(), [2]bool{true, true}, [2]bool{v4, v6}, 0)
		}
	}
	written := synced(false, false)
	verified := func(s *State, _ *cluster.Watch) { s.Verified(fwd.IPv4); s.Verified(fwd.IPv6) }
	verified4 := func(s *State, _ *cluster.Watch) { s.Verified(fwd.IPv4) }
	alone := func(s *State, _ *cluster.Watch) { s.SetServed([2]bool{true, false}) }
	// waits is a sync of IPv4 alone, while IPv6 waits for its next attempt.
	waits := func(s *State, _ *cluster.Watch) {
		s.Synced(time.Now(), time.Now(), [2]bool{true, false}, [2]bool{false, true}, 0)
	}
	period := func(d time.Duration) step { return func(s *State, _ *cluster.Watch) { s.SetSyncPeriod(d) } }
	untaken := func(s *State, _ *cluster.Watch) {
		since := time.Now()
		s.o.Backlog = func() cluster.Backlog { return cluster.Backlog{WaitingSince: since} }
	}
	taken := func(s *State, _ *cluster.Watch) { s.o.Backlog = func() cluster.Backlog { return cluster.Backlog{} } }
	leaving := func(yes bool) step { return func(s *State, _ *cluster.Watch) { s.Node(yes) } }
	heard := func(_ *State, w *cluster.Watch) { w.LastSeen = time.Now() }
	open := func(yes bool) step { return func(_ *State, w *cluster.Watch) { w.Open = yes } }
	standby := func(yes bool) step {
		return func(s *State, _ *cluster.Watch) { s.SetStandby(map[bool]string{true: "another process works"}[yes]) }
	}
	day := func(s *State, w *cluster.Watch) { // of a quiet cluster, whose server sends no bookmarks
		for range 144 {
			time.Sleep(10 * time.Minute)
			heard(s, w)
		}
	}
	tests := []struct {
		name  string
		steps []step
		// want are the codes of healthz, livez and readyz.
		want [3]int
	}{
		{"at the start", nil, [3]int{ok, ok, bad}},
		{"written, not read back", []step{written}, [3]int{ok, ok, bad}},
		{"written and read back", []step{written, verified}, [3]int{ok, ok, ok}},
		{"one family read back", []step{written, verified4}, [3]int{ok, ok, bad}},
		{"the only family read back", []step{alone, waits, verified4}, [3]int{ok, ok, ok}},
		{"one family fails, and syncs of the other go on", []step{queued, synced(false, true), wait(time.Minute), waits}, [3]int{bad, bad, bad}},
		{"one family of the first write fails", []step{synced(false, true), verified}, [3]int{ok, ok, bad}},
		{"nothing happens for long", []step{open(true), written, verified, day}, [3]int{ok, ok, ok}},
		{"a change waits for almost twice the period", []step{written, verified, queued, wait(time.Minute - 1)}, [3]int{ok, ok, ok}},
		{"a change waits longer", []step{written, verified, queued, wait(time.Minute)}, [3]int{bad, bad, bad}},
		{"another period", []step{written, verified, queued, period(time.Minute), wait(2*time.Minute - 1)}, [3]int{ok, ok, ok}},
		{"the loop takes no change", []step{written, verified, untaken, wait(time.Minute)}, [3]int{bad, bad, bad}},
		{"the loop takes changes", []step{written, verified, untaken, wait(time.Minute), taken}, [3]int{ok, ok, ok}},
		// A rolling update waits for the new process to be ready, and that one for the old one to
		// end.
		{"on standby changes wait", []step{standby(true), untaken, queued, wait(time.Hour), heard}, [3]int{ok, ok, ok}},
		{"on standby, node about to be deleted", []step{standby(true), leaving(true)}, [3]int{bad, ok, ok}},
		{"on standby no more", []step{standby(true), untaken, wait(time.Hour), heard, standby(false), taken}, [3]int{ok, ok, bad}},
		{"the oldest change counts", []step{queued, wait(40 * time.Second), queued, wait(30 * time.Second)}, [3]int{bad, bad, bad}},
		{"written late", []step{queued, wait(14 * time.Minute), written, verified}, [3]int{ok, ok, ok}},
		{"one family fails", []step{queued, synced(false, true), wait(time.Minute)}, [3]int{bad, bad, bad}},
		{"a repair fails", []step{written, verified, synced(true, true), wait(time.Minute)}, [3]int{bad, bad, bad}},
		{"node about to be deleted", []step{written, verified, leaving(true)}, [3]int{bad, ok, ok}},
		{"node stays after all", []step{written, verified, leaving(true), leaving(false)}, [3]int{ok, ok, ok}},
		{"API server away for a while", []step{written, verified, open(false), wait(14 * time.Minute)}, [3]int{ok, ok, ok}},
		{"API server away for long", []step{written, verified, open(false), wait(time.Hour)}, [3]int{ok, ok, bad}},
		{"API server back", []step{written, verified, open(false), wait(time.Hour), heard, open(true)}, [3]int{ok, ok, ok}},
		{"an open watch is silent", []step{written, verified, open(true), wait(StaleAfter)}, [3]int{ok, ok, ok}},
		{"an open watch is silent for too long", []step{written, verified, open(true), wait(StaleAfter + 1)}, [3]int{bad, bad, bad}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := cluster.Watch{Resource: "services", LastSeen: time.Now()}
				var answered []string
				s := NewState(Options{SyncPeriod: 30 * time.Second, Watches: func() []cluster.Watch { return []cluster.Watch{w} },
					Answered: func(endpoint string, code int) { answered = append(answered, fmt.Sprint(endpoint, code)) }})
				for _, step := range tt.steps {
					step(s, &w)
				}
				var got [3]int
				for i, path := range []string{"/healthz", "/livez", "/readyz"} {
					got[i] = get(t, s.Handler(), "GET", path).Code
				}
				if got != tt.want {
					t.Errorf("codes of healthz, livez, readyz %v, want %v", got, tt.want)
				}
				if fresh := s.Fresh(); fresh != (tt.want[1] == ok) {
					t.Errorf("fresh: %v", fresh)
				}
				want := []string{fmt.Sprint("healthz", tt.want[0]), fmt.Sprint("livez", tt.want[1]), fmt.Sprint("readyz", tt.want[2])}
				if d := cmp.Diff(want, answered); d != "" {
					t.Errorf("reported responses (-want +got):\n%s", d)
				}
			})
		})
	}
}

// The bodies of /healthz and /livez were taken from kube-proxy 1.36.3.
func TestBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight on 2000-01-01 UTC
		s := NewState(Options{SyncPeriod: 30 * time.Second})
		time.Sleep(time.Second)
		s.Synced(time.Now(), time.Now(), [2]bool{true, true}, [2]bool{false, true}, 2)
		s.Verified(fwd.IPv4)
		time.Sleep(time.Minute + time.Millisecond)
		const status = `"status":{"IPv4":{"lastUpdated":"2000-01-01T00:00:01Z","healthy":true},"IPv6":{"lastUpdated":"2000-01-01T00:00:00Z","healthy":false}}`
		want := map[string]string{
			"/healthz": `{"lastUpdated":"2000-01-01T00:00:01Z","currentTime":"2000-01-01T00:01:01.001Z","nodeEligible":true,"healthy":false,` + status + `}`,
			"/livez":   `{"lastUpdated":"2000-01-01T00:00:01Z","currentTime":"2000-01-01T00:01:01.001Z","healthy":false,` + status + `}`,
			"/readyz": `{"lastUpdated":"2000-01-01T00:00:01Z","currentTime":"2000-01-01T00:01:01.001Z","healthy":false,` + status +
				`,"ready":false,"written":false,"verified":false,"families":{"IPv4":{"written":true,"verified":true},"IPv6":{"written":false,"verified":false}},"quarantinedServices":2,"watches":{"services":{"open":true,"staleSeconds":61.001}},"notes":["waiting for the node"]}`,
		}
		born := time.Now().Add(-61001 * time.Millisecond)
		s.o.Watches = func() []cluster.Watch { return []cluster.Watch{{Resource: "services", LastSeen: born, Open: true}} }
		s.o.Notes = func() []string { return []string{"waiting for the node"} }
		for path, body := range want {
			w := get(t, s.Handler(), "GET", path)
			if d := cmp.Diff(body, w.Body.String()); d != "" {
				t.Errorf("%s (-want +got):\n%s", path, d)
			}
			if h := w.Header(); h.Get("Content-Type") != "application/json" || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: header %v", path, h)
			}
		}
		s.Synced(time.Now(), time.Now(), [2]bool{true, true}, [2]bool{}, 0)
		time.Sleep(time.Hour)
		const now = "2000-01-01T01:01:01.001Z"
		good := `{"lastUpdated":"` + now + `","currentTime":"` + now + `","healthy":true,"status":{"IPv4":{"lastUpdated":"2000-01-01T00:01:01.001Z","healthy":true},` +
			`"IPv6":{"lastUpdated":"2000-01-01T00:01:01.001Z","healthy":true}}}`
		s.o.Watches = nil
		if d := cmp.Diff(good, get(t, s.Handler(), "HEAD", "/livez").Body.String()); d != "" {
			t.Errorf("healthy (-want +got):\n%s", d)
		}
		if w := get(t, s.Handler(), "GET", "/other"); w.Code != http.StatusNotFound {
			t.Errorf("other path: %d", w.Code)
		}
	})
}
