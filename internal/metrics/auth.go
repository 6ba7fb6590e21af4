package metrics

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Reviewer asks the API server.
type Reviewer interface {
	// Review says who holds the token, and whether that user may do what the verb says, such as "get", with a path. The user
	// is empty where the API server knows no holder. An error means that it did not answer.
	Review(ctx context.Context, token, verb, path string) (user string, allowed bool, err error)
}

const (
	// allowedFor and refusedFor are how long an answer holds. A permission that is taken away may be used for that long.
	allowedFor = time.Minute
	refusedFor = 10 * time.Second
	// maxVerdicts bounds how many answers are remembered, maxReviews how many questions are open: everybody who reaches the
	// server can make tokens up.
	maxVerdicts = 1000
	maxReviews  = 8
	// reviewTime is how long the API server has.
	reviewTime = 10 * time.Second
	// maxToken is the longest token that is looked at, in bytes.
	maxToken = 16 << 10
)

// gate lets requests through whose bearer token may do what they ask for. /healthz is open.
type gate struct {
	next     http.Handler
	reviewer Reviewer
	log      *slog.Logger
	// open holds one value for each question to the API server.
	open chan struct{}

	mu       sync.Mutex // guards verdicts
	verdicts map[question]verdict
}

// question is what a verdict is about, hashed: neither are tokens kept, nor can long paths take memory.
type question [sha256.Size]byte

type verdict struct {
	code  int
	until time.Time
}

func newGate(next http.Handler, r Reviewer, log *slog.Logger) *gate {
	return &gate{next: next, reviewer: r, log: log, open: make(chan struct{}, maxReviews), verdicts: make(map[question]verdict)}
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/healthz" || req.URL.Path == "/healthz/ping" {
		g.next.ServeHTTP(w, req)
		return
	}
	switch code := g.judge(req); code {
	case http.StatusOK:
		g.next.ServeHTTP(w, req)
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "Unauthorized", code)
	default:
		http.Error(w, http.StatusText(code), code)
	}
}

// judge returns 200, or why the request does not get through.
func (g *gate) judge(req *http.Request) int {
	scheme, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return http.StatusUnauthorized
	}
	verb, path := strings.ToLower(req.Method), req.URL.Path
	q := question(sha256.Sum256([]byte(token + "\x00" + verb + "\x00" + path)))
	now := time.Now()
	g.mu.Lock()
	v, known := g.verdicts[q]
	g.mu.Unlock()
	if known && now.Before(v.until) {
		return v.code
	}
	code := g.ask(req.Context(), token, verb, path)
	if code == http.StatusServiceUnavailable {
		return code // the next request asks again
	}
	hold := refusedFor
	if code == http.StatusOK {
		hold = allowedFor
	}
	g.remember(q, verdict{code, now.Add(hold)}, now)
	return code
}

// ask asks the API server.
func (g *gate) ask(ctx context.Context, token, verb, path string) int {
	if g.reviewer == nil {
		return http.StatusServiceUnavailable
	}
	select {
	case g.open <- struct{}{}:
		defer func() { <-g.open }()
	default:
		return http.StatusServiceUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	user, allowed, err := g.reviewer.Review(ctx, token, verb, path)
	switch {
	case err != nil:
		g.log.Debug("the API server does not say who asks for metrics", "path", path, "error", err)
		return http.StatusServiceUnavailable
	case user == "":
		return http.StatusUnauthorized
	case !allowed:
		g.log.Debug("a user may not see this", "user", user, "verb", verb, "path", path)
		return http.StatusForbidden
	}
	return http.StatusOK
}

func (g *gate) remember(q question, v verdict, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.verdicts) >= maxVerdicts {
		for old, v := range g.verdicts {
			if !now.Before(v.until) {
				delete(g.verdicts, old)
			}
		}
	}
	if len(g.verdicts) >= maxVerdicts {
		clear(g.verdicts)
	}
	g.verdicts[q] = v
}
