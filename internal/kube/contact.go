package kube

import (
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/fairlead/fairlead/internal/cluster"
)

// watchGrace is how long after its time a watch that the API server has not ended is cut on this side. A Reflector asks
// for watches of five to ten minutes, and waits without an end of its own: where something on the way keeps the connection
// but lost the watch, it would wait for ever.
const watchGrace = 30 * time.Second

// contact keeps a cluster.Watch; it is part of the stores behind Reflectors, which call UpdateResourceVersion.
type contact struct {
	// mu guards all that follows.
	mu sync.Mutex
	cluster.Watch
	// watch is the one that began last.
	watch *followed
}

func newContact(resource string) *contact {
	return &contact{Watch: cluster.Watch{Resource: resource, LastSeen: time.Now()}}
}

func (c *contact) get() cluster.Watch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Watch
}

func (c *contact) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.LastSeen = time.Now()
}

// UpdateResourceVersion implements cache.ResourceVersionUpdater: it is called for every event and bookmark.
func (c *contact) UpdateResourceVersion(string) { c.hear() }

// follow takes note of a watch that begins, and cuts it when its time is over and the server does not.
func (c *contact) follow(w watch.Interface, o metav1.ListOptions) watch.Interface {
	f := &followed{Interface: w, contact: c}
	if o.TimeoutSeconds != nil {
		f.cut = time.AfterFunc(time.Duration(*o.TimeoutSeconds)*time.Second+watchGrace, w.Stop)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.LastSeen, c.Open, c.watch = time.Now(), true, f
	return f
}

// followed is a watch of which the contact knows.
type followed struct {
	watch.Interface
	contact *contact
	// cut is the timer that ends it; nil where the request named no time.
	cut *time.Timer
}

// Stop implements watch.Interface. A Reflector calls it for every watch that it is done with.
func (f *followed) Stop() {
	if f.cut != nil {
		f.cut.Stop()
	}
	f.contact.mu.Lock()
	if f.contact.watch == f {
		f.contact.Open = false
	}
	f.contact.mu.Unlock()
	f.Interface.Stop()
}
