package kube

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reviews answers TokenReviews and SubjectAccessReviews: the token "good" belongs to alice, who may
// get /metrics.
func reviews(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	body, _ := io.ReadAll(req.Body)
	switch {
	case strings.HasSuffix(req.URL.Path, "/tokenreviews"):
		var r authenticationv1.TokenReview
		if err := json.Unmarshal(body, &r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.Spec.Token == "down" {
			status(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
			return
		}
		r.Status.Authenticated = r.Spec.Token == "good"
		if r.Status.Authenticated {
			r.Status.User = authenticationv1.UserInfo{Username: "alice", Groups: []string{"scrapers"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}}}
		}
		r.TypeMeta = metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
		_ = json.NewEncoder(w).Encode(r)
	case strings.HasSuffix(req.URL.Path, "/subjectaccessreviews"):
		var r authorizationv1.SubjectAccessReview
		if err := json.Unmarshal(body, &r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		at := r.Spec.NonResourceAttributes
		r.Status.Allowed = r.Spec.User == "alice" && slices.Contains(r.Spec.Groups, "scrapers") && r.Spec.Extra["k"][0] == "v" &&
			at != nil && at.Path == "/metrics" && at.Verb == "get"
		r.TypeMeta = metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SubjectAccessReview"}
		_ = json.NewEncoder(w).Encode(r)
	default:
		http.NotFound(w, req)
	}
}

func TestReviewer(t *testing.T) {
	a := httptest.NewServer(http.HandlerFunc(reviews))
	t.Cleanup(a.Close)
	s, err := NewAPISource(APIOptions{Master: a.URL, NodeName: "n1", QPS: 1000, Burst: 1000, ContentType: "application/json"}, NewFeed())
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Reviewer()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, token, verb, path string
		user                    string
		allowed, fails          bool
	}{
		{"may", "good", "get", "/metrics", "alice", true, false},
		{"another path", "good", "get", "/configz", "alice", false, false},
		{"another verb", "good", "put", "/metrics", "alice", false, false},
		{"unknown token", "bad", "get", "/metrics", "", false, false},
		{"API server fails", "down", "get", "/metrics", "", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user, allowed, err := r.Review(t.Context(), tt.token, tt.verb, tt.path)
			if user != tt.user || allowed != tt.allowed || (err != nil) != tt.fails {
				t.Errorf("got %q, %v, %v", user, allowed, err)
			}
		})
	}
}
