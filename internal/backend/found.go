package backend

import (
	"sync"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Finder can tell which frontends a process before this one left in the kernel.
type Finder interface {
	// Found returns the UDP frontends that the first reading of each family found, those of each family in one call only. It
	// may be called by any goroutine.
	Found() []fwd.Key
}

// Found collects for a Finder what its Targets read. The zero Found is ready to use, and safe for concurrent use.
type Found struct {
	mu   sync.Mutex // guards what follows
	seen [2]bool    // by fwd.Family.Index
	keys []fwd.Key
}

// Record takes in what was read of a family; only the first call for each counts. It calls yield for each frontend, of
// which only those of UDP are kept.
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
