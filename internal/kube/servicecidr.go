package kube

import (
	"maps"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// ConvertServiceCIDR returns the networks of a ServiceCIDR (KEP-1880). A ServiceCIDR that is not
// ready has none: nothing is allocated from it, or it is being deleted. Without a condition it is
// ready. Invalid CIDRs are left out.
func ConvertServiceCIDR(s *networkingv1.ServiceCIDR) []netip.Prefix {
	notReady := func(c metav1.Condition) bool {
		return c.Type == networkingv1.ServiceCIDRConditionReady && c.Status == metav1.ConditionFalse
	}
	if slices.ContainsFunc(s.Status.Conditions, notReady) {
		return nil
	}
	var out []netip.Prefix
	for _, text := range s.Spec.CIDRs {
		if p, ok := parsePrefix(text); ok {
			out = append(out, p)
		}
	}
	return out
}

// MergeCIDRs joins lists: the result is sorted and has no prefix inside another. Service CIDRs
// overlap while one is replaced by a wider one.
func MergeCIDRs(lists ...[]netip.Prefix) []netip.Prefix {
	all := slices.Concat(lists...)
	slices.SortFunc(all, netip.Prefix.Compare)
	var out []netip.Prefix
	for _, p := range all {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// cidrStore is the store behind the Reflector of ServiceCIDRs, which is its only user.
type cidrStore struct {
	*watchState
	feed *Feed
	// cidrs by name of the object; last is what the Feed has.
	cidrs map[string][]netip.Prefix
	last  []netip.Prefix
	// failures counts failed lists.
	failures int
}

var _ cache.ReflectorStore = (*cidrStore)(nil)

func newCIDRStore(f *Feed) *cidrStore {
	return &cidrStore{watchState: newWatchState(KindServiceCIDRs.String()), feed: f, cidrs: make(map[string][]netip.Prefix)}
}

// Add adds or changes an object.
func (s *cidrStore) Add(obj any) error {
	s.put(obj)
	s.deliver()
	return nil
}

// Update is the same as Add.
func (s *cidrStore) Update(obj any) error { return s.Add(obj) }

// Delete deletes an object.
func (s *cidrStore) Delete(obj any) error {
	if o, ok := obj.(*networkingv1.ServiceCIDR); ok {
		delete(s.cidrs, o.Name)
		s.deliver()
	}
	return nil
}

// Replace sets the whole state.
func (s *cidrStore) Replace(list []any, _ string) error {
	clear(s.cidrs)
	for _, obj := range list {
		s.put(obj)
	}
	s.deliver()
	s.feed.MarkSynced(KindServiceCIDRs) // also if there are none
	return nil
}

// maxCIDRFailures is the number of failed lists after which the Feed no longer waits for service
// CIDRs.
const maxCIDRFailures = 3

// listed takes the result of a list. The Feed does not wait for service CIDRs that the server does
// not have, does not allow us to read, or repeatedly fails to list.
func (s *cidrStore) listed(err error) {
	if err == nil {
		return
	}
	s.failures++
	if s.failures == maxCIDRFailures || apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		s.feed.MarkSynced(KindServiceCIDRs)
	}
}

func (s *cidrStore) put(obj any) {
	if o, ok := obj.(*networkingv1.ServiceCIDR); ok {
		s.cidrs[o.Name] = ConvertServiceCIDR(o)
	}
}

func (s *cidrStore) deliver() {
	if all := MergeCIDRs(slices.Collect(maps.Values(s.cidrs))...); !slices.Equal(all, s.last) {
		s.last = all
		s.feed.SetServiceCIDRs(all)
	}
}
