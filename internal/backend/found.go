package backend

import (
	"sync"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Finder returns the frontends that an earlier process left in the kernel.
type Finder interface {
	// Found returns the UDP frontends in the first reading of each family, once per family. It is
	// safe for concurrent use.
	Found() []fwd.Key
}

// Found collects what Targets read, for a Finder. The zero Found is ready to use, and safe for
// concurrent use.
type Found struct {
	mu   sync.Mutex // guards what follows
	seen [2]bool    // by fwd.Family.Index
	keys []fwd.Key
}

// Record stores the UDP frontends of a family's first reading; later calls are ignored. It calls
// frontends with a yield.
func (f *Found) Record(family fwd.Family, frontends func(yield func(fwd.Key))) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen[family.Index()] {
		return
	}
	f.seen[family.Index()] = true
	frontends(func(k fwd.Key) {
		if k.Proto == fwd.UDP {
			f.keys = append(f.keys, k)
		}
	})
}

// Found implements Finder.
func (f *Found) Found() []fwd.Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys := f.keys
	f.keys = nil
	return keys
}
