package kube

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
)

const testTaint = "fairlead.dev/not-ready"

func tainted(keys ...string) *v1.Node {
	n := apiNode("z1")
	for _, k := range keys {
		n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: k, Value: "v", Effect: v1.TaintEffectNoSchedule})
	}
	return n
}

func (a *fakeAPI) patches() int { return len(a.seen("n1", false)) }

// removing runs a source that removes the taint from the Node.
func removing(t *testing.T, a *fakeAPI, n *v1.Node) (*follower, *APISource) {
	t.Helper()
	a.put(n)
	f, s := attach(t, a, func(o *APIOptions) { o.RemoveTaint, o.ContentType = testTaint, "application/json" })
	f.until("synced", f.feed.Synced)
	return f, s
}

// untilTaints waits for a patch and compares the keys of the remaining taints.
func (a *fakeAPI) untilTaints(t *testing.T, want string) {
	t.Helper()
	var keys []string
	for _, taint := range next(t, a.patched).Spec.Taints {
		keys = append(keys, taint.Key)
	}
	if got := strings.Join(keys, " "); got != want {
		t.Errorf("taints %q, want %q", got, want)
	}
}

func (a *fakeAPI) untilEvent(t *testing.T) {
	t.Helper()
	e := next(t, a.events)
	if diff := cmp.Diff([]string{ReasonTaintRemoved, "Node", "Normal"}, []string{e.Reason, e.Regarding.Kind, e.Type}); diff != "" || !strings.Contains(e.Note, testTaint) {
		t.Errorf("Event %q: %s", e.Note, diff)
	}
}

func TestTaintIsRemoved(t *testing.T) {
	for _, tt := range []struct{ before, after string }{
		{testTaint, ""},
		{"a " + testTaint + " b", "a b"},
		{testTaint + " b " + testTaint, "b"}, // a key may have several effects
	} {
		t.Run(tt.before, func(t *testing.T) {
			a := newFakeAPI(t, true)
			f, s := removing(t, a, tainted(strings.Fields(tt.before)...))
			a.put(tainted(append(strings.Fields(tt.before), "c")...)) // updates change nothing
			a.put(tainted(strings.Fields(tt.before)...))
			a.put(apiService("a", "10.96.0.1"))
			f.untilIP("a", "10.96.0.1")
			if a.patches() > 0 {
				t.Fatal("the taint is removed before the rules are in the kernel")
			}
			s.Programmed()
			s.Programmed()
			a.untilTaints(t, tt.after)
			a.untilEvent(t)
			if f.logs.count("taint removed") != 1 {
				t.Errorf("logged %d times", f.logs.count("taint removed"))
			}
		})
	}
}

func TestNoTaintNoPatch(t *testing.T) {
	a := newFakeAPI(t, true)
	f, s := removing(t, a, tainted("a"))
	s.Programmed()
	a.put(tainted("a", "b"))
	a.put(apiService("a", "10.96.0.1"))
	f.untilIP("a", "10.96.0.1")
	if n := a.patches(); n > 0 {
		t.Errorf("%d patches of a Node without the taint", n)
	}
}

// TestTaintRace proves that a concurrent change of the taints is not lost.
func TestTaintRace(t *testing.T) {
	a := newFakeAPI(t, true)
	a.racing = func() { a.put(tainted("a", testTaint, "new")) }
	_, s := removing(t, a, tainted("a", testTaint))
	s.Programmed()
	a.untilTaints(t, "a new")
	if n := a.patches(); n < 2 {
		t.Errorf("%d patches, want the one that failed and another", n)
	}
}

// TestTaintOfNewNode proves that the taint is removed again from a Node that registers again.
func TestTaintOfNewNode(t *testing.T) {
	a := newFakeAPI(t, true)
	_, s := removing(t, a, tainted(testTaint))
	s.Programmed()
	a.untilTaints(t, "")
	a.remove(tainted())
	a.put(tainted(testTaint, "b"))
	a.untilTaints(t, "b")
}

// TestTaintForbidden proves that missing permission is logged once, and that the taint is removed
// when the permission is there.
func TestTaintForbidden(t *testing.T) {
	a := newFakeAPI(t, true)
	a.setAbsent("n1", http.StatusForbidden)
	f, s := removing(t, a, tainted(testTaint))
	s.Programmed()
	next(t, a.refused)
	next(t, a.refused) // the result of the first is logged by then
	a.setAbsent("n1", 0)
	a.untilTaints(t, "")
	a.untilEvent(t)
	if n := f.logs.count("cannot remove the taint"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}
