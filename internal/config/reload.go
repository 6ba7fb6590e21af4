package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Change is one setting that two Configs have differently.
type Change struct {
	// Name is the field or the flag.
	Name, Old, New string
}

// String is for logs.
func (c Change) String() string { return fmt.Sprintf("%s from %q to %q", c.Name, c.Old, c.New) }

// Diff compares two Configs: live changes are those that Apply applies, the others need a restart. What has no effect is
// in neither.
func Diff(old, next *Config) (live, restart []Change) {
	for i, s := range old.settings {
		n := next.settings[i]
		if s.get() == n.get() || s.note != "" || !s.matters(old) && !n.matters(next) {
			continue
		}
		ch := Change{next.name(n), s.get(), n.get()}
		if s.applies(old, next) {
			live = append(live, ch)
		} else {
			restart = append(restart, ch)
		}
	}
	return live, restart
}

// applies says whether a change of the setting takes no restart.
func (s *setting) applies(old, next *Config) bool { return s.reload != nil && s.reload(old, next) }

// Apply returns the Config that a running process works with when the operator changes c to next: the live changes of
// Diff, and nothing else.
func (c *Config) Apply(next *Config) *Config {
	out := Default()
	out.args, out.hostname, out.file = c.args, c.hostname, next.file
	for i, s := range out.settings {
		from := c.settings[i]
		if from.applies(c, next) {
			from = next.settings[i]
		}
		if err := s.say(from.get(), from.origin); err != nil {
			panic(fmt.Sprintf("BUG: %s is set to %q: %v", out.name(s), from.get(), err))
		}
	}
	out.complete()
	out.notes = next.notes
	out.NodeName = c.NodeName
	return out
}

// sameFamily says that the servers would listen where they do: by default they follow the bind address' family.
func sameFamily(old, next *Config) bool { return old.BindAddress.Is6() == next.BindAddress.Is6() }

// sameDetector says that a detector can be exchanged: one that waits for the Node's podCIDR is chosen at the start.
func sameDetector(old, next *Config) bool {
	return (old.DetectMode == DetectNodeCIDR) == (next.DetectMode == DetectNodeCIDR)
}

// samePorts says that node ports need nothing outside of the rules that is not there yet: neither the kernel's leave to
// route loopback addresses nor a forwarder.
func samePorts(old, next *Config) bool {
	loopback := func(c *Config) bool { return c.Header(cluster.Node{}, nil).NodePorts[fwd.IPv4.Index()].Loopback }
	return old.Mode == next.Mode && old.LocalPorts() == next.LocalPorts() && loopback(old) == loopback(next)
}

// sameConversion says that API objects would be read as before.
func sameConversion(old, next *Config) bool {
	return old.Gates.LoadBalancerIPMode == next.Gates.LoadBalancerIPMode
}

// settleTime is how long the directory has to be quiet before the file is read again: a ConfigMap is several events.
const settleTime = 100 * time.Millisecond

// Watch reads the configuration file again whenever it changes, and yields what Parse makes of it and of the command line,
// with or without an error. It is silent while the text stays the same. It watches directories, so that it sees the exchange of a
// symbolic link that a ConfigMap is updated by, a rename, and a write in place. It returns when the context ends, or with
// the reason why it cannot watch; without a file, at once.
func (c *Config) Watch(ctx context.Context, yield func(*Config, error)) error {
	if c.ConfigFile == "" {
		return nil
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", c.ConfigFile, err)
	}
	defer w.Close()
	f := watchedFile{path: c.ConfigFile, text: c.file, watcher: w}
	if err := f.follow(); err != nil {
		return err
	}
	timer := time.NewTimer(0) // it may have changed since it was read
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch %s: %w", f.path, err)
			}
			timer.Reset(settleTime)
		case <-w.Events:
			timer.Reset(settleTime)
		case <-timer.C:
			if err := f.follow(); err != nil {
				return err
			}
			switch changed, err := f.reread(); {
			case err != nil && changed:
				yield(nil, fmt.Errorf("--config: %w", err))
			case changed:
				yield(Parse(c.args, c.hostname))
			}
		}
	}
}

// watchedFile is a file that is reread, possibly through symbolic links.
type watchedFile struct {
	path string
	// text and missing are what the last reading found.
	text    []byte
	missing string
	watcher *fsnotify.Watcher
}

// follow watches the directory of the file, and the one that its symbolic links lead to at present.
func (f *watchedFile) follow() error {
	dirs := []string{filepath.Dir(f.path)}
	if target, err := filepath.EvalSymlinks(f.path); err == nil {
		dirs = append(dirs, filepath.Dir(target))
	}
	for _, dir := range dirs { // twice is harmless, and a directory that is gone leaves the list by itself
		if err := f.watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	return nil
}

// reread reads the file and says whether there is anything new about it. That it is missing, or empty as between the two
// halves of a write, is new; that it is there again as it was is not.
func (f *watchedFile) reread() (changed bool, err error) {
	text, err := os.ReadFile(f.path)
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("%s is empty", f.path)
	}
	missing := f.missing
	if f.missing = ""; err != nil {
		f.missing = err.Error()
		return f.missing != missing, err
	}
	changed = !bytes.Equal(text, f.text)
	f.text = text
	return changed, nil
}
