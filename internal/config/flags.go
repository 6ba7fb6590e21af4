package config

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/pflag"
)

// flagValue is a flag as pflag wants it. What is wrong with a text is kept for Settle, so that the operator hears of
// everything at once.
type flagValue struct {
	settings []*setting
	// name is the flag's name as it was given last.
	name string
	// given says that the flag was given, text is all that it was given.
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

// apply says to the settings what the flag says.
func (f *flagValue) apply() {
	f.err = nil
	for _, s := range f.settings {
		if err := s.say(f.text, byFlag); err != nil {
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

// Bind registers all flags; parsing them changes c, and Settle reports what is wrong with them. Words in their names may
// be joined with _ as well.
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
		usage = "the same as --" + s.flag
	}
	f := fs.VarPF(v, name, short, usage)
	f.Hidden = s.hidden
	if s.typ == boolean {
		f.NoOptDefVal = "true"
	}
}

// Flagz lists all flags that have an effect with their values, however these were said, as text that may be shown to
// others.
func (c *Config) Flagz() map[string]string {
	out := make(map[string]string)
	for _, s := range c.settings {
		if _, known := out[s.flag]; s.flag == "" || s.hidden && s.origin == unsaid || known && !s.matters(c) {
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

// name is what the operator calls a setting: the field where the file said it, else the flag.
func (c *Config) name(s *setting) string {
	if s.flag == "" || s.origin == byFile || s.origin == unsaid && s.field != "" && c.ConfigFile != "" {
		return s.field
	}
	return "--" + s.flag
}

// nameOf is the name of the setting that the flag sets; where there are several, the one that matters in this mode.
func (c *Config) nameOf(flag string) string {
	if s := c.setting(flag); s != nil {
		return c.name(s)
	}
	return "--" + flag
}

// setting finds the setting of a flag; where there are several, the one that matters in this mode. It is nil for no flag.
func (c *Config) setting(flag string) *setting {
	var found *setting
	for _, s := range c.settings {
		if s.flag == flag && (found == nil || s.matters(c)) {
			found = s
		}
	}
	return found
}

// refusal is what is wrong with a text that was given for settings.
type refusal struct {
	settings []*setting
	err      error
}

func (s *setting) refuse(where, text string, err error) refusal {
	return refusal{[]*setting{s}, fmt.Errorf("%s %q: %w", where, text, err)}
}
