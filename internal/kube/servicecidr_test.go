package kube

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func serviceCIDR(name string, ready metav1.ConditionStatus, cidrs ...string) *networkingv1.ServiceCIDR {
	s := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
	if ready != "" {
		s.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: ready}}
	}
	return s
}

func (f *follower) untilCIDRs(want string) {
	f.t.Helper()
	f.until("service CIDRs "+want, func() bool { return fmt.Sprint(f.store.ServiceCIDRs()) == want })
}

// TestServiceCIDRs proves that the CIDRs are those of all objects that are ready, through all
// changes.
func TestServiceCIDRs(t *testing.T) {
	a := newFakeAPI(t, true)
	a.put(apiNode("z1"))
	a.put(serviceCIDR("kubernetes", metav1.ConditionTrue, "10.96.0.0/16", "fd00::/112"))
	f, _ := attach(t, a, func(o *APIOptions) { o.ServiceCIDRs = true })
	f.untilCIDRs("[10.96.0.0/16 fd00::/112]")
	a.put(serviceCIDR("more", "", "10.97.0.0/16", "no CIDR"))
	f.untilCIDRs("[10.96.0.0/16 10.97.0.0/16 fd00::/112]")
	a.put(serviceCIDR("wide", metav1.ConditionTrue, "10.96.0.0/12"))
	f.untilCIDRs("[10.96.0.0/12 fd00::/112]")
	a.put(serviceCIDR("wide", metav1.ConditionFalse, "10.96.0.0/12"))
	f.untilCIDRs("[10.96.0.0/16 10.97.0.0/16 fd00::/112]")
	a.remove(serviceCIDR("kubernetes", metav1.ConditionTrue))
	f.untilCIDRs("[10.97.0.0/16]")
}

func TestServiceCIDRsAreOnlyWatchedIfNeeded(t *testing.T) {
	a := newFakeAPI(t, true)
	a.put(apiNode("z1"))
	f, _ := attach(t, a, func(*APIOptions) {})
	f.until("synced", f.feed.Synced)
	if n := len(a.seen("servicecidrs", true)) + len(a.seen("servicecidrs", false)); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// TestServiceCIDRsAbsent proves that a server without ServiceCIDRs, or without permission to read
// them, is logged once and asked again from time to time.
func TestServiceCIDRsAbsent(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusForbidden} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			a := newFakeAPI(t, true)
			a.put(apiNode("z1"))
			a.put(serviceCIDR("kubernetes", metav1.ConditionTrue, "10.96.0.0/16"))
			a.setAbsent("servicecidrs", code)
			f, _ := attach(t, a, func(o *APIOptions) { o.ServiceCIDRs, o.absentPause = true, time.Millisecond })
			f.until("synced", f.feed.Synced)
			f.until("told", func() bool { return f.logs.count("level=INFO", "API server does not provide servicecidrs") == 1 })
			f.until("asked twice", func() bool { f.feed.signal(); return len(a.seen("servicecidrs", false)) > 1 })
			a.setAbsent("servicecidrs", 0)
			f.untilCIDRs("[10.96.0.0/16]")
			if n := f.logs.count("level=INFO", "API server does not provide servicecidrs"); n != 1 || f.logs.count("level=WARN", "servicecidrs") != 0 {
				t.Errorf("logged %d times:\n%s", n, f.logs.String())
			}
		})
	}
}

func TestServiceCIDRsFromFiles(t *testing.T) {
	const one = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: a}\nspec: {cidrs: [10.96.0.0/16]}\n"
	path := filepath.Join(t.TempDir(), "objects.yaml")
	write(t, path, one)
	store, err := LoadFiles(path, "n1", Converter{}, nil)
	if err != nil || fmt.Sprint(store.ServiceCIDRs()) != "[10.96.0.0/16]" {
		t.Errorf("%v, %v", store, err)
	}
	f := follow(t, path)
	f.untilCIDRs("[10.96.0.0/16]")
	write(t, path, "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDRList\nitems:\n- {metadata: {name: a}, spec: {cidrs: [10.97.0.0/16]}}\n"+
		"- {metadata: {name: b}, spec: {cidrs: ['fd00::/112']}, status: {conditions: [{type: Ready, status: 'True'}]}}\n"+
		"- {metadata: {name: c}, spec: {cidrs: [10.98.0.0/16]}, status: {conditions: [{type: Ready, status: 'False'}]}}\n")
	f.untilCIDRs("[10.97.0.0/16 fd00::/112]")
}
