package kube

import (
	"cmp"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// ConvertServiceCIDR reads the networks of a ServiceCIDR (KEP-1880). One that is not ready has none: nothing is allocated
// from it, or it is on its way out. Where the condition is missing it is ready. CIDRs that are not valid are left out.
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

// MergeCIDRs puts lists together: sorted, and without prefixes that are inside another. They overlap while a service CIDR is
// replaced by a wider one.
func MergeCIDRs(lists ...[]netip.Prefix) []netip.Prefix {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range all {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// cidrStore is the store behind the Reflector of ServiceCIDRs. It is used by one goroutine.
type cidrStore struct {
	feed *Feed
	// cidrs by the name of their object; last is what the Feed has.
	cidrs map[string][]netip.Prefix
	last  []netip.Prefix
	// failures counts lists that failed.
	failures int
}

var _ cache.ReflectorStore = (*cidrStore)(nil)

func newCIDRStore(f *Feed) *cidrStore {
	return &cidrStore{feed: f, cidrs: make(map[string][]netip.Prefix)}
}

// Add takes in a new object.
func (s *cidrStore) Add(obj any) error {
	s.put(obj)
	s.deliver()
	return nil
}

// Update is Add.
func (s *cidrStore) Update(obj any) error { return s.Add(obj) }

// Delete forgets an object.
func (s *cidrStore) Delete(obj any) error {
	if o, ok := obj.(*networkingv1.ServiceCIDR); ok {
		delete(s.cidrs, o.Name)
		s.deliver()
	}
	return nil
}

// Replace takes the whole state.
func (s *cidrStore) Replace(list []any, _ string) error {
	clear(s.cidrs)
	for _, obj := range list {
		s.put(obj)
	}
	s.deliver()
	s.feed.MarkSynced(KindServiceCIDRs) // also where there are none
	return nil
}

// maxCIDRFailures is how many lists may fail before nobody waits for service CIDRs any more.
const maxCIDRFailures = 3

// noted takes the outcome of a list. What the server does not have or does not show is not waited for, and neither is what
// it does not manage to tell.
func (s *cidrStore) noted(err error) {
	if err == nil {
		return
	}
	s.failures++
	if s.failures == maxCIDRFailures || apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		s.feed.MarkSynced(KindServiceCIDRs)
	}
}

// Resync does nothing, as with keyStore.
func (s *cidrStore) Resync() error { return nil }

func (s *cidrStore) put(obj any) {
	if o, ok := obj.(*networkingv1.ServiceCIDR); ok {
		s.cidrs[o.Name] = ConvertServiceCIDR(o)
	}
}

func (s *cidrStore) deliver() {
	var lists [][]netip.Prefix
	for _, l := range s.cidrs {
		lists = append(lists, l)
	}
	if all := MergeCIDRs(lists...); !slices.Equal(all, s.last) {
		s.last = all
		s.feed.SetServiceCIDRs(all)
	}
}
