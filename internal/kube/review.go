package kube

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
)

// Reviewer asks the API server who holds a token and what that user may do. It needs the permission to create
// tokenreviews.authentication.k8s.io and subjectaccessreviews.authorization.k8s.io (ClusterRole system:auth-delegator).
// Its methods may be called by any goroutine.
type Reviewer struct {
	tokens authenticationclient.TokenReviewInterface
	access authorizationclient.SubjectAccessReviewInterface
}

// Reviewer returns a Reviewer with a limit of requests of its own, so that those who ask do not hold up the watches.
func (s *APISource) Reviewer() (*Reviewer, error) {
	tokens, err := authenticationclient.NewForConfigAndClient(s.config, s.http)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", s.config.Host, err)
	}
	access, err := authorizationclient.NewForConfigAndClient(s.config, s.http)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", s.config.Host, err)
	}
	return &Reviewer{tokens.TokenReviews(), access.SubjectAccessReviews()}, nil
}

// Review says who holds the token, and whether that user may do what the verb says, such as "get", with a path that is no
// resource. The user is empty where the API server knows no holder. An error means that the API server did not answer.
func (r *Reviewer) Review(ctx context.Context, token, verb, path string) (user string, allowed bool, err error) {
	t, err := r.tokens.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return "", false, fmt.Errorf("create a TokenReview: %w", err)
	}
	if !t.Status.Authenticated || t.Status.User.Username == "" {
		return "", false, nil
	}
	u := t.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(u.Extra))
	for k, v := range u.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	a, err := r.access.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: verb},
		User:                  u.Username, UID: u.UID, Groups: u.Groups, Extra: extra,
	}}, metav1.CreateOptions{})
	if err != nil {
		return "", false, fmt.Errorf("create a SubjectAccessReview for %s: %w", u.Username, err)
	}
	return u.Username, a.Status.Allowed && !a.Status.Denied, nil
}
