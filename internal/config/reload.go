package config

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/filewatch"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Change is a setting that differs between two Configs.
type Change struct {
	// Name is the field or the flag.
	Name, Old, New string
}

// Diff compares two Configs. It returns the changes that Apply applies and those that need a
// restart. It leaves out settings without effect.
func Diff(old, next *Config) (live, restart []Change) {
	for i, s := range old.settings {
		n := next.settings[i]
		if s.get() == n.get() || s.note != "" || !s.inUse(old) && !n.inUse(next) {
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

// applies reports whether a change of the setting needs no restart.
func (s *setting) applies(old, next *Config) bool { return s.reload != nil && s.reload(old, next) }

// Apply returns the Config of a running process after the operator changes c to next: c with the
// live changes of Diff.
func (c *Config) Apply(next *Config) *Config {
	out := Default()
	out.args, out.hostname, out.file = c.args, c.hostname, next.file
	for i, s := range out.settings {
		from := c.settings[i]
		if from.applies(c, next) {
			from = next.settings[i]
		}
		if err := s.assign(from.get(), from.origin); err != nil {
			panic(fmt.Sprintf("BUG: %s is set to %q: %v", out.name(s), from.get(), err))
		}
	}
	out.complete()
	out.notes = next.notes
	out.NodeName = c.NodeName
	return out
}

// sameFamily reports whether the servers stay where they are: by default they follow the family of
// the bind address.
func sameFamily(old, next *Config) bool { return old.BindAddress.Is6() == next.BindAddress.Is6() }

// sameDetector reports whether the detector can be replaced. One that needs the Node's podCIDR
// waits for it at startup.
func sameDetector(old, next *Config) bool {
	return (old.DetectMode == DetectNodeCIDR) == (next.DetectMode == DetectNodeCIDR)
}

// samePorts reports whether node ports need the same setup outside of the rules: the sysctl that
// allows routing to loopback addresses, and the forwarder.
func samePorts(old, next *Config) bool {
	loopback := func(c *Config) bool { return c.Header(cluster.Node{}, nil).NodePorts[fwd.IPv4.Index()].Loopback }
	return old.Mode == next.Mode && old.LocalPorts() == next.LocalPorts() && loopback(old) == loopback(next)
}

// sameConversion reports whether API objects are converted in the same way.
func sameConversion(old, next *Config) bool {
	return old.Gates.LoadBalancerIPMode == next.Gates.LoadBalancerIPMode
}

// Watch reads the configuration file again when it changes, and yields what Parse makes of it and
// the command line. It yields nothing while the content stays the same. It returns when ctx ends,
// with an error if the file cannot be watched, and at once if there is no file.
func (c *Config) Watch(ctx context.Context, yield func(*Config, error)) error {
	if c.ConfigFile == "" {
		return nil
	}
	f := watchedFile{path: c.ConfigFile, text: c.file}
	return filewatch.Watch(ctx, c.ConfigFile, nil, func() {
		switch changed, err := f.reread(); {
		case err != nil && changed:
			yield(nil, fmt.Errorf("--config: %w", err))
		case changed:
			yield(Parse(c.args, c.hostname))
		}
	})
}

// watchedFile is a file and the result of reading it last.
type watchedFile struct {
	path string
	text []byte
	// problem is why the file could not be used; empty if it could.
	problem string
}

// reread reads the file and reports whether the result differs from the last one. A file that
// reappears with the same content has not changed. An empty file is an error: it is probably being
// written.
func (f *watchedFile) reread() (changed bool, err error) {
	text, err := os.ReadFile(f.path)
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("%s is empty", f.path)
	}
	before := f.problem
	if f.problem = ""; err != nil {
		f.problem = err.Error()
		return f.problem != before, err
	}
	changed = !bytes.Equal(text, f.text)
	f.text = text
	return changed, nil
}
