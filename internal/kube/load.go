package kube

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// extensions of the files of a directory that are read.
var extensions = []string{".yaml", ".yml", ".json"}

func isObjectFile(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains(extensions, filepath.Ext(name))
}

// filesAt names the files that a path stands for, sorted: itself, or the object files of a directory without those in
// directories below it.
func filesAt(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read objects: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read objects: %w", err)
	}
	var files []string
	for _, e := range entries {
		file := filepath.Join(path, e.Name())
		if !isObjectFile(e.Name()) {
			continue
		}
		if info, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		files = append(files, file)
	}
	return files, nil
}

// LoadFiles reads objects once, without watching: from a file, the *.yaml, *.yml and *.json of a directory, or standard
// input for "-". The error names every document and object that could not be read. Fields that are set aside are only
// logged. Where the Node is not among the objects it has a name and nothing else.
func LoadFiles(path, nodeName string, c ConvertOptions, log *slog.Logger) (*cluster.Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	files, read := []string{"standard input"}, func(string) ([]byte, error) { return io.ReadAll(os.Stdin) }
	if path != "-" {
		var err error
		if files, err = filesAt(path); err != nil {
			return nil, err
		}
		read = os.ReadFile
	}
	r := &reader{convert: c, interned: newInterner(), log: log}
	contents := make(map[string]parsed, len(files))
	var errs []error
	seen := 0
	for _, file := range files {
		data, err := read(file)
		if err != nil {
			errs = append(errs, fmt.Errorf("read objects: %w", err))
			continue
		}
		p, err := r.parse(file, data)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, bad := range p.bad {
			errs = append(errs, bad.err)
		}
		contents[file] = p
		seen += p.seen
	}
	if len(errs) == 0 && seen == 0 {
		errs = append(errs, nothingIn(path, contents))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	merged, notices := merge(contents, nodeName)
	for _, n := range notices {
		n.log(log)
	}
	return merged.store(), nil
}

// nothingIn is the error of files without an object that is read.
func nothingIn(path string, contents map[string]parsed) error {
	empty := len(contents) > 0
	for _, file := range sortedKeys(contents) {
		if list := contents[file].ignored; len(list) > 0 {
			return fmt.Errorf("read objects: no Service, EndpointSlice or Node in %s; %s: %s: %s", path, list[0].where, list[0].first, list[0].why)
		}
		empty = empty && contents[file].empty
	}
	if empty {
		return fmt.Errorf("read objects: %s is empty", path)
	}
	return fmt.Errorf("read objects: no Service, EndpointSlice or Node in %s", path)
}

// state is all objects of all files.
type state struct {
	services map[fwd.Service]*cluster.Service
	slices   map[cluster.SliceName]*cluster.Slice
	node     cluster.Node
	cidrs    []netip.Prefix
}

// store returns a Store with the state.
func (s state) store() *cluster.Store {
	var store cluster.Store
	for _, v := range s.services {
		store.SetService(v)
	}
	for _, v := range s.slices {
		store.SetSlice(v)
	}
	store.SetNode(s.node)
	store.SetServiceCIDRs(s.cidrs)
	return &store
}

// notice is a line for the log. Notices are comparable, so that each is logged once for as long as it holds.
type notice struct {
	level                                  slog.Level
	message, object, field, problem, where string
}

func (n notice) log(log *slog.Logger) {
	var args []any
	for _, kv := range [][2]string{{"object", n.object}, {"field", n.field}, {"problem", n.problem}, {"where", n.where}} {
		if kv[1] != "" {
			args = append(args, kv[0], kv[1])
		}
	}
	switch n.level {
	case slog.LevelInfo:
		log.Info(n.message, args...)
	case slog.LevelWarn:
		log.Warn(n.message, args...)
	default:
		log.Error(n.message, args...)
	}
}

// merge puts the files together. Of an object that is defined more than once the first counts, in the order of the files'
// names.
func merge(contents map[string]parsed, nodeName string) (state, []notice) {
	out := state{services: make(map[fwd.Service]*cluster.Service), slices: make(map[cluster.SliceName]*cluster.Slice),
		node: cluster.Node{Name: nodeName}}
	var notices []notice
	where := make(map[objectName]string)
	node := objectName{kind: "Node", name: nodeName}
	for _, file := range sortedKeys(contents) {
		for _, p := range contents[file].problems {
			notices = append(notices, notice{level: slog.LevelWarn, message: "field is set aside", object: p.Object, field: p.Field,
				problem: p.Message, where: p.where})
		}
		for _, i := range contents[file].ignored {
			notices = append(notices, i.notice())
		}
		for _, o := range contents[file].objects {
			if first, ok := where[o.name]; ok {
				notices = append(notices, notice{level: slog.LevelWarn, message: "object is defined twice, the first counts", object: o.name.String(),
					problem: "first defined in " + first, where: o.where})
				continue
			}
			where[o.name] = o.where
			switch {
			case o.service != nil:
				out.services[o.service.Name] = o.service
			case o.slice != nil:
				out.slices[o.slice.Name] = o.slice
			case o.name == node:
				out.node = *o.node
			case len(o.cidrs) > 0:
				out.cidrs = MergeCIDRs(out.cidrs, o.cidrs)
			}
		}
	}
	if _, ok := where[node]; !ok {
		notices = append(notices, notice{level: slog.LevelInfo, message: "the files have no such Node, so it has no addresses and no zone",
			object: node.String()})
	}
	return out, notices
}
