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

	"github.com/fsnotify/fsnotify"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/filewatch"
)

// FileSource delivers the objects in a file or a directory and follows changes. If a file cannot be
// parsed, its objects stay as they were, and so does an object that cannot be read.
type FileSource struct {
	path string
	// dir means that the path was a directory at startup.
	dir    bool
	node   string
	log    *slog.Logger
	feed   *Feed
	reader *reader
	seed   maphash.Seed
	// contents are the last valid contents by file; hashes are of what was read last, valid or not.
	contents map[string]parsed
	hashes   map[string]uint64
	broken   map[string]error
	logged   map[notice]bool
	sent     state
}

func newFileSource(path, nodeName string, c Converter, log *slog.Logger, f *Feed) *FileSource {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &FileSource{
		path: filepath.Clean(path), node: nodeName, log: log, feed: f, seed: maphash.MakeSeed(),
		reader:   &reader{convert: c.interning(), log: log},
		contents: make(map[string]parsed), hashes: make(map[string]uint64), broken: make(map[string]error),
	}
}

// NewFileSource reads the files for the first time. The error means that the path cannot be read,
// that a file cannot be parsed, or that a single file has no objects that can be used.
func NewFileSource(path string, nodeName string, c Converter, log *slog.Logger, f *Feed) (*FileSource, error) {
	s := newFileSource(path, nodeName, c, log, f)
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

// Run delivers the objects and their changes until ctx ends. The error means that the files cannot
// be watched.
func (s *FileSource) Run(ctx context.Context) error {
	return filewatch.Watch(ctx, s.path, s.isRelevant, func() {
		s.reload()
		if !s.feed.Synced() {
			s.feed.MarkSynced()
		}
	})
}

// isRelevant reports whether an event may change the objects. In a ConfigMap volume, names that
// start with ".." belong to the kubelet.
func (s *FileSource) isRelevant(e fsnotify.Event) bool {
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

// read reads all files that have changed. The error means that the path as a whole cannot be read;
// errors of single files are in s.broken.
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
		s.parse(file, data)
	}
	return nil
}

func (s *FileSource) forget(file string) {
	delete(s.contents, file)
	delete(s.hashes, file)
	delete(s.broken, file)
}

// parse parses a file if its content is new. A bad object is replaced by its last valid version.
func (s *FileSource) parse(file string, data []byte) {
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
		i := slices.IndexFunc(s.contents[file].objects, same)
		if i >= 0 && !slices.ContainsFunc(p.objects, same) {
			p.objects = append(p.objects, s.contents[file].objects[i])
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
		s.logNew([]notice{{level: slog.LevelError, message: "cannot read objects; keeping the last known state", problem: err.Error()}})
		return
	}
	next, notices := merge(s.contents, s.node)
	for _, file := range sortedKeys(s.broken) {
		notices = append(notices, notice{level: slog.LevelError, message: "cannot use file; keeping its last valid objects",
			problem: s.broken[file].Error()})
	}
	for _, file := range sortedKeys(s.contents) {
		for _, bad := range s.contents[file].bad {
			notices = append(notices, notice{level: slog.LevelError, message: "ignoring invalid object", problem: bad.err.Error()})
		}
	}
	s.logNew(notices)
	s.deliver(next)
}

// logNew logs the notices that are not among those of the last call.
func (s *FileSource) logNew(notices []notice) {
	logged := make(map[notice]bool, len(notices))
	for _, n := range notices {
		if !s.logged[n] && !logged[n] {
			n.log(s.log)
		}
		logged[n] = true
	}
	s.logged = logged
}

// deliver passes the difference to the last state to the Feed in one update.
func (s *FileSource) deliver(next state) {
	changes := 0
	s.feed.update(func() {
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
		s.log.Info("objects read from files", "path", s.path, "services", len(next.services), "slices", len(next.slices), "changes", changes)
	}
}

// put calls set for each new or changed value, and with nil for each removed one. It returns the
// number of calls.
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
