package config

import (
	"net/url"
	"strings"

	"github.com/spf13/pflag"
)

// flagValue implements pflag.Value. It keeps a parse error for Settle, so that the operator sees
// all problems at once.
type flagValue struct {
	settings []*setting
	// name is the name by which the flag was given last.
	name string
	// given reports whether the flag was given; text is everything it was given.
	given bool
	text  string
	err   error
}

// Set implements pflag.Value.
func (f *flagValue) Set(s string) error {
	if f.given && f.settings[0].list {
		s = f.text + "," + s
	}
	f.given, f.text = true, s
	f.apply()
	return nil
}

// apply sets the settings to the value of the flag.
func (f *flagValue) apply() {
	f.err = nil
	for _, s := range f.settings {
		if err := s.assign(f.text, byFlag); err != nil {
			f.err = err
		}
	}
}

// String implements pflag.Value.
func (f *flagValue) String() string { return f.settings[0].get() }

// Type implements pflag.Value.
func (f *flagValue) Type() string { return f.settings[0].typ }

// alias is a flag under another name.
type alias struct {
	*flagValue
	name string
}

// Set implements pflag.Value.
func (a alias) Set(s string) error {
	a.flagValue.name = a.name
	return a.flagValue.Set(s)
}

// Bind registers all flags. Parsing them changes c; Settle reports invalid values. Flag names may
// use _ instead of -.
func (c *Config) Bind(fs *pflag.FlagSet) {
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	known := make(map[string]*flagValue)
	for _, s := range c.settings {
		if s.flag == "" {
			continue
		}
		if v := known[s.flag]; v != nil {
			v.settings = append(v.settings, s)
			continue
		}
		v := &flagValue{settings: []*setting{s}, name: s.flag}
		known[s.flag] = v
		c.flags = append(c.flags, v)
		register(fs, v, s.flag, s.short, s)
		if s.alias != "" {
			register(fs, alias{v, s.alias}, s.alias, "", s)
		}
	}
}

func register(fs *pflag.FlagSet, v pflag.Value, name, short string, s *setting) {
	usage := s.usage
	if name == s.alias {
		usage = "same as --" + s.flag
	}
	f := fs.VarPF(v, name, short, usage)
	f.Hidden = s.hidden
	if s.typ == boolean {
		f.NoOptDefVal = "true"
	}
}

// Flagz returns the values of all flags that have an effect, whether they come from the command
// line, the file or a default. Passwords are redacted.
func (c *Config) Flagz() map[string]string {
	out := make(map[string]string)
	for _, s := range c.settings {
		_, known := out[s.flag]
		if s.flag == "" || s.hidden && s.origin == byDefault || known && !s.inUse(c) {
			continue
		}
		out[s.flag] = s.get()
	}
	if u, err := url.Parse(c.Master); err == nil {
		out["master"] = u.Redacted()
	} else {
		out["master"] = "(not a URL)"
	}
	return out
}

// name returns what the operator calls a setting: the field if the file set it, else the flag.
func (c *Config) name(s *setting) string {
	inFile := s.origin == byFile || s.origin == byDefault && s.field != "" && c.ConfigFile != ""
	if s.flag == "" || inFile {
		return s.field
	}
	return "--" + s.flag
}

// nameOf returns the name of the setting of a flag.
func (c *Config) nameOf(flag string) string {
	if s := c.setting(flag); s != nil {
		return c.name(s)
	}
	return "--" + flag
}

// setting returns the setting of a flag; if there are several, the one in use. It is nil if there
// is no such flag.
func (c *Config) setting(flag string) *setting {
	var found *setting
	for _, s := range c.settings {
		if s.flag == flag && (found == nil || s.inUse(c)) {
			found = s
		}
	}
	return found
}

// invalidValue is a value that could not be assigned to settings.
type invalidValue struct {
	settings []*setting
	err      error
}
