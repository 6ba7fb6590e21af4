package metrics

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/cache"
)

// Reviewer asks the API server about requests.
type Reviewer interface {
	// Review returns the user who holds the token, empty if the API server knows none, and whether
	// that user may do what the verb says, such as "get", with a path. An error means that the API
	// server did not respond.
	Review(ctx context.Context, token, verb, path string) (user string, allowed bool, err error)
}

const (
	// allowedTTL and refusedTTL are how long a result is cached. A permission that is revoked may
	// be used for that long.
	allowedTTL = time.Minute
	refusedTTL = 10 * time.Second
	// maxVerdicts limits the cached results, maxReviews the requests to the API server at one time:
	// everybody who reaches the server can make up tokens.
	maxVerdicts = 1000
	maxReviews  = 8
	// reviewTimeout is for the API server's response.
	reviewTimeout = 10 * time.Second
	// maxToken is the length in bytes from which a token is refused without a review.
	maxToken = 16 << 10
)

// gate passes on requests whose bearer token may do what they ask for, and all requests for
// /healthz.
type gate struct {
	next     http.Handler
	reviewer Reviewer
	log      *slog.Logger
	// open has one value for each review that is going on.
	open chan struct{}
	// verdicts are status codes by question.
	verdicts *cache.LRUExpireCache
}

// question identifies what was asked. It is a hash, so that no token is kept and long paths take no
// memory.
type question [sha256.Size]byte

func newGate(next http.Handler, r Reviewer, log *slog.Logger) *gate {
	return &gate{next: next, reviewer: r, log: log, open: make(chan struct{}, maxReviews), verdicts: cache.NewLRUExpireCache(maxVerdicts)}
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/healthz" || req.URL.Path == "/healthz/ping" {
		g.next.ServeHTTP(w, req)
		return
	}
	switch code := g.verdict(req); code {
	case http.StatusOK:
		g.next.ServeHTTP(w, req)
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "Unauthorized", code)
	default:
		http.Error(w, http.StatusText(code), code)
	}
}

// verdict returns 200 if the request may pass, and otherwise the status code of the refusal.
func (g *gate) verdict(req *http.Request) int {
	scheme, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return http.StatusUnauthorized
	}
	verb, path := strings.ToLower(req.Method), req.URL.Path
	q := question(sha256.Sum256([]byte(token + "\x00" + verb + "\x00" + path)))
	if code, ok := g.verdicts.Get(q); ok {
		return code.(int)
	}
	code := g.review(req.Context(), token, verb, path)
	switch code {
	case http.StatusServiceUnavailable: // not cached
	case http.StatusOK:
		g.verdicts.Add(q, code, allowedTTL)
	default:
		g.verdicts.Add(q, code, refusedTTL)
	}
	return code
}

// review asks the API server.
func (g *gate) review(ctx context.Context, token, verb, path string) int {
	if g.reviewer == nil {
		return http.StatusServiceUnavailable
	}
	select {
	case g.open <- struct{}{}:
		defer func() { <-g.open }()
	default:
		return http.StatusServiceUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	user, allowed, err := g.reviewer.Review(ctx, token, verb, path)
	switch {
	case err != nil:
		g.log.Debug("cannot review a request to the metrics server", "path", path, "error", err)
		return http.StatusServiceUnavailable
	case user == "":
		return http.StatusUnauthorized
	case !allowed:
		g.log.Debug("refused a request to the metrics server", "user", user, "verb", verb, "path", path)
		return http.StatusForbidden
	}
	return http.StatusOK
}
