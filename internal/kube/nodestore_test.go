package kube

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
)

// waiting returns a nodeStore whose wait runs until the test ends, and the result of wait.
func waiting(t *testing.T) (*nodeStore, *logBuffer, <-chan error) {
	logs := &logBuffer{}
	s := &nodeStore{watchState: newWatchState("nodes"), name: "n1", feed: NewFeed(), log: logs.logger(), explain: func(error) string { return "" }}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- s.wait(ctx) }()
	return s, logs, done
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestNodeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, logs, done := waiting(t)
		pass(time.Hour) // an API server that does not respond is no reason to exit
		for range 3 {
			_ = s.Replace(nil, "1") // a Reflector that restarts
		}
		if !strings.Contains(s.problem(), `no node "n1"`) {
			t.Errorf("problem %q", s.problem())
		}
		pass(nodeTimeout - nodeTick)
		if n := logs.count("level=WARN", `has no node \"n1\"`); n != 3 { // at once, and after 1 and 3 minutes
			t.Errorf("%d lines in %v:\n%s", n, nodeTimeout, logs.String())
		}
		if len(done) != 0 {
			t.Fatal("ended early")
		}
		pass(2 * nodeTick)
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), `no node after 5m0s: the API server has no node "n1": is --hostname-override right?`) {
				t.Errorf("error %v", err)
			}
		default:
			t.Error("does not time out")
		}
	})
}

func TestDeletedNodeDoesNotTimeOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, logs, done := waiting(t)
		_ = s.Replace(nil, "1")
		pass(nodeTimeout / 2)
		_ = s.Add(apiNode("z1"))
		if s.problem() != "" || logs.count("node found") != 1 {
			t.Errorf("problem %q:\n%s", s.problem(), logs.String())
		}
		_ = s.Delete(apiNode("z1"))
		pass(24 * time.Hour)
		if len(done) != 0 {
			t.Error("ended")
		}
		if n := logs.count("cannot read the node; keeping its last known state"); n < 2 || n > 60 {
			t.Errorf("%d lines in a day:\n%s", n, logs.String())
		}
		if n := logs.count("node is being deleted"); n != 1 {
			t.Errorf("%d lines on the deletion", n)
		}
	})
}

func TestNodeChangesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, logs, _ := waiting(t)
		put := func(cidr string, addrs ...string) {
			n := apiNode("z1")
			n.Spec.PodCIDRs, n.Status.Addresses = []string{cidr}, nil
			for _, a := range addrs {
				n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: a})
			}
			_ = s.Add(n)
		}
		put("10.1.0.0/24")
		put("10.1.0.0/24")
		put("10.1.0.0/24", "192.0.2.1", "192.0.2.2")
		put("10.1.0.0/24", "192.0.2.2", "192.0.2.1")
		put("10.2.0.0/24", "192.0.2.2", "192.0.2.1")
		for line, want := range map[string]int{"no InternalIP or ExternalIP": 1, "node addresses changed": 2, "node podCIDRs changed": 1} {
			if n := logs.count(line); n != want {
				t.Errorf("%q: %d lines, want %d:\n%s", line, n, want, logs.String())
			}
		}
	})
}

func TestRefusedNode(t *testing.T) {
	for code, want := range map[int][]string{
		http.StatusForbidden:    {"does not allow us to read (403)", "ClusterRole", "list and watch"},
		http.StatusUnauthorized: {"does not accept our credential (401)", "--master is given without --kubeconfig"},
	} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			a := newFakeAPI(t, true)
			a.put(apiService("a", "10.96.0.1"))
			a.setAbsent("nodes", code)
			f, s := attach(t, a, func(*APIOptions) {})
			f.until("the log says so", func() bool { return f.logs.count(append(want, "waiting for the node")...) > 0 })
			why := s.NodeProblem()
			for _, text := range want {
				if !strings.Contains(why, text) {
					t.Errorf("problem %q", why)
				}
			}
			if unauthorized := code == http.StatusUnauthorized; unauthorized == strings.Contains(why, "ClusterRole") {
				t.Errorf("reported as missing permission: %q", why)
			}
			a.put(apiNode("z1"))
			a.setAbsent("nodes", 0)
			f.until("synced", f.feed.Synced)
			if s.NodeProblem() != "" {
				t.Errorf("problem %q", s.NodeProblem())
			}
		})
	}
}
