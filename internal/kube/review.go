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

// Reviewer asks the API server to whom a token belongs and what that user may do. It needs
// permission to create tokenreviews.authentication.k8s.io and
// subjectaccessreviews.authorization.k8s.io (ClusterRole system:auth-delegator). It is safe for
// concurrent use.
type Reviewer struct {
	tokens authenticationclient.TokenReviewInterface
	access authorizationclient.SubjectAccessReviewInterface
}

// Reviewer returns a Reviewer with its own rate limit.
func (s *APISource) Reviewer() (*Reviewer, error) {
	c, err := s.newClient()
	if err != nil {
		return nil, err
	}
	return &Reviewer{c.AuthenticationV1().TokenReviews(), c.AuthorizationV1().SubjectAccessReviews()}, nil
}

// Review returns the user to whom the token belongs, and whether the user may apply a verb, such as
// "get", to a non-resource path. The user is empty if the token is not valid. The error means that
// the API server did not answer.
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
