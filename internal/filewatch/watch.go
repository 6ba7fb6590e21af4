package filewatch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// One change is often several events. A change is reported when there have been no events for
// settleTime, but at most settleLimit after the first.
const (
	settleTime  = 50 * time.Millisecond
	settleLimit = time.Second
)

// Watch calls changed when it starts to watch and after each change, until ctx ends. relevant,
// which may be nil, selects events. The error says that the path cannot be watched.
//
// A file is watched through its directory, and through the directory of the file that its symbolic
// links lead to. If the directory disappears, Watch waits for it to come back.
func Watch(ctx context.Context, path string, relevant func(fsnotify.Event) bool, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	defer w.Close()
	if err := add(w, path); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	timer := time.NewTimer(0) // the file may have changed since the caller read it
	defer timer.Stop()
	var first time.Time // of the events that were not reported yet
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.Events:
			if relevant != nil && !relevant(e) {
				continue
			}
		case <-w.Errors: // events were lost
		case <-timer.C:
			first = time.Time{}
			// The path may be another directory or link now. Adding a directory twice is harmless.
			if err := add(w, path); err != nil {
				timer.Reset(settleLimit)
			}
			changed()
			continue
		}
		if first.IsZero() {
			first = time.Now()
		}
		timer.Reset(max(0, min(settleTime, time.Until(first.Add(settleLimit)))))
	}
}

// add watches the path if it is a directory, else its directory, and if possible the other
// directories in which a change can happen.
func add(w *fsnotify.Watcher, path string) error {
	needed := filepath.Dir(path)
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		_ = w.Add(needed)
		needed = path
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		_ = w.Add(filepath.Dir(target))
	}
	return w.Add(needed)
}
