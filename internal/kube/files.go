package kube

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/fairlead/fairlead/internal/cluster"
)

// Files are read again when they have been quiet for settleTime, and settleLimit after the first change at the latest.
const (
	settleTime  = 50 * time.Millisecond
	settleLimit = time.Second
)

// FileSource delivers the objects of a file or a directory, and follows changes. A file that does not parse keeps the
// objects that it had; so does an object that cannot be read. It watches directories, not files, and so also sees that a
// file is replaced by a rename, or that a ConfigMap's symbolic link is swapped.
type FileSource struct {
	path string
	// dir says that the path was a directory at the start.
	dir    bool
	node   string
	log    *slog.Logger
	feed   *Feed
	reader *reader
	seed   maphash.Seed
	// contents are the last good contents by file, and hashes those of what was last read, good or not.
	contents map[string]parsed
	hashes   map[string]uint64
	broken   map[string]error
	told     map[notice]bool
	sent     state
}

// NewFileSource reads the files for the first time. An error says that the path cannot be read, that a file does not parse
// or that a single file has nothing of use in it.
func NewFileSource(path string, nodeName string, c ConvertOptions, log *slog.Logger, f *Feed) (*FileSource, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &FileSource{
		path: filepath.Clean(path), node: nodeName, log: log, feed: f, seed: maphash.MakeSeed(),
		reader:   &reader{convert: c, interned: newInterner(), log: log},
		contents: make(map[string]parsed), hashes: make(map[string]uint64), broken: make(map[string]error),
	}
	if err := s.read(); err != nil {
		return nil, err
	}
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, fmt.Errorf("read objects: %w", err)
	}
	s.dir = info.IsDir()
	for _, file := range sortedKeys(s.broken) {
		return nil, fmt.Errorf("read objects: %w", s.broken[file])
	}
	if p := s.contents[s.path]; !s.dir && p.seen == 0 {
		if len(p.bad) > 0 {
			return nil, fmt.Errorf("read objects: %w", p.bad[0].err)
		}
		return nil, nothingIn(s.path, s.contents)
	}
	return s, nil
}

// Run delivers what the files have, and what they change to, until ctx ends. An error means that they cannot be watched.
func (s *FileSource) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", s.path, err)
	}
	defer w.Close()
	if err := s.watch(w); err != nil {
		return fmt.Errorf("watch %s: %w", s.path, err)
	}
	s.reload()
	s.feed.MarkSynced()

	settled := time.NewTimer(settleLimit)
	settled.Stop()
	var first time.Time
	changed := func() {
		if first.IsZero() {
			first = time.Now()
		}
		settled.Reset(max(0, min(settleTime, time.Until(first.Add(settleLimit)))))
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.Events:
			if s.concerns(e) {
				changed()
			}
		case err := <-w.Errors:
			s.log.Warn("events of files were lost, they are read again", "path", s.path, "error", err)
			changed()
		case <-settled.C:
			first = time.Time{}
			if err := s.watch(w); err != nil {
				s.log.Debug("path cannot be watched", "path", s.path, "error", err)
			}
			s.reload()
		}
	}
}

// watch watches the directory of the path, that which the path leads to by symbolic links, and the path if it is a
// directory. What is watched already stays so; a path that was replaced is watched anew. An error says that changes of the
// files themselves will not be seen.
func (s *FileSource) watch(w *fsnotify.Watcher) error {
	needed, others := filepath.Dir(s.path), []string(nil)
	if s.dir {
		needed, others = s.path, []string{needed}
	}
	if target, err := filepath.EvalSymlinks(s.path); err == nil {
		others = append(others, filepath.Dir(target))
	}
	for _, dir := range others {
		if err := w.Add(dir); err != nil {
			s.log.Debug("directory cannot be watched", "path", dir, "error", err)
		}
	}
	return w.Add(needed)
}

// concerns says whether an event may change the objects. Names that begin with ".." are those of a ConfigMap's volume.
func (s *FileSource) concerns(e fsnotify.Event) bool {
	if e.Op == fsnotify.Chmod {
		return false
	}
	base := filepath.Base(e.Name)
	if base == filepath.Base(s.path) || strings.HasPrefix(base, "..") {
		return true
	}
	if target, err := filepath.EvalSymlinks(s.path); err == nil && base == filepath.Base(target) {
		return true
	}
	return filepath.Dir(e.Name) == s.path && isObjectFile(base)
}

// read takes in all files that changed since the last time. An error says that the path as a whole cannot be read; what is
// wrong with single files is left in s.broken.
func (s *FileSource) read() error {
	files, err := filesAt(s.path)
	if err != nil {
		return err
	}
	for file := range s.hashes {
		if !slices.Contains(files, file) {
			s.forget(file)
		}
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			s.forget(file)
			continue
		}
		if err != nil {
			delete(s.hashes, file)
			s.broken[file] = err
			continue
		}
		s.take(file, data)
	}
	return nil
}

func (s *FileSource) forget(file string) {
	delete(s.contents, file)
	delete(s.hashes, file)
	delete(s.broken, file)
}

// take parses a file if it is not what it was. A bad object leaves the good one that was there before.
func (s *FileSource) take(file string, data []byte) {
	hash := maphash.Bytes(s.seed, data)
	if old, ok := s.hashes[file]; ok && old == hash {
		return
	}
	s.hashes[file] = hash
	p, err := s.reader.parse(file, data)
	if err != nil {
		s.broken[file] = err
		return
	}
	delete(s.broken, file)
	for _, bad := range p.bad {
		same := func(o fileObject) bool { return o.name == bad.name }
		at := slices.IndexFunc(s.contents[file].objects, same)
		if at >= 0 && !slices.ContainsFunc(p.objects, same) {
			p.objects = append(p.objects, s.contents[file].objects[at])
		}
	}
	s.contents[file] = p
}

// reload reads the files, delivers what changed and logs what is new.
func (s *FileSource) reload() {
	switch err := s.read(); {
	case errors.Is(err, fs.ErrNotExist) && !s.dir:
		s.forget(s.path)
	case err != nil:
		s.tell([]notice{{level: slog.LevelError, message: "objects cannot be read, the last ones stay in force", problem: err.Error()}})
		return
	}
	next, notices := merge(s.contents, s.node)
	for _, file := range sortedKeys(s.broken) {
		notices = append(notices, notice{level: slog.LevelError, message: "file cannot be used, its last good objects stay in force",
			problem: s.broken[file].Error()})
	}
	for _, file := range sortedKeys(s.contents) {
		for _, bad := range s.contents[file].bad {
			notices = append(notices, notice{level: slog.LevelError, message: "object is set aside", problem: bad.err.Error()})
		}
	}
	s.tell(notices)
	s.deliver(next)
}

// tell logs the notices that did not hold the last time.
func (s *FileSource) tell(notices []notice) {
	told := make(map[notice]bool, len(notices))
	for _, n := range notices {
		if !s.told[n] && !told[n] {
			n.log(s.log)
		}
		told[n] = true
	}
	s.told = told
}

// deliver gives the Feed the difference to what it was given before, all at once.
func (s *FileSource) deliver(next state) {
	changes := 0
	s.feed.together(func() {
		changes = put(s.sent.services, next.services, (*cluster.Service).Equal, s.feed.putService) +
			put(s.sent.slices, next.slices, (*cluster.Slice).Equal, s.feed.putSlice)
		if !s.sent.node.Equal(&next.node) {
			s.feed.putNode(next.node)
			changes++
		}
		if !slices.Equal(s.sent.cidrs, next.cidrs) {
			s.feed.serviceCIDRs = &next.cidrs
			changes++
		}
	})
	s.sent = next
	if changes > 0 {
		s.log.Info("objects read", "path", s.path, "services", len(next.services), "slices", len(next.slices), "changes", changes)
	}
}

// put calls set for each value that is new or not what it was, and with nil for each that is gone; it counts the calls.
func put[K comparable, V any](old, next map[K]*V, equal func(a, b *V) bool, set func(K, *V)) int {
	changes := 0
	for name, v := range next {
		if was := old[name]; was == nil || !equal(was, v) {
			set(name, v)
			changes++
		}
	}
	for name := range old {
		if next[name] == nil {
			set(name, nil)
			changes++
		}
	}
	return changes
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
