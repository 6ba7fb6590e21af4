package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/kube-proxy/config/v1alpha1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// The type of the file.
const (
	fileVersion = "kubeproxy.config.k8s.io/v1alpha1"
	fileKind    = "KubeProxyConfiguration"
)

// load applies the file and then the flags again, with a note for each value that a flag replaces.
// It returns all invalid values. The error means that the file cannot be used at all.
func (c *Config) load(data []byte) ([]invalidValue, error) {
	obj, notes, err := decode(data)
	c.notes = append(c.notes, notes...)
	if err != nil {
		return nil, err
	}
	fields := fieldsOf(obj)
	var out []invalidValue
	inFile := make(map[*setting]bool)
	for _, s := range c.settings {
		if s.field == "" {
			continue
		}
		text, present := fieldText(fields[s.field])
		if !present {
			continue
		}
		inFile[s] = true
		if err := s.assign(text, byFile); err != nil {
			err = fmt.Errorf("%s: %s %q: %w", c.ConfigFile, s.field, text, err)
			out = append(out, invalidValue{[]*setting{s}, err})
		}
	}
	for _, f := range c.flags {
		if !f.given {
			continue
		}
		before := make([]string, len(f.settings))
		for i, s := range f.settings {
			before[i] = s.get()
		}
		f.apply()
		for i, s := range f.settings {
			if inFile[s] && s.get() != before[i] && s.note == "" {
				c.notes = append(c.notes, fmt.Sprintf("--%s %s overrides the file's %s, which is %s", f.name, f.text, s.field, before[i]))
			}
		}
	}
	return out, nil
}

// decode parses a KubeProxyConfiguration in YAML or JSON. As in kube-proxy, unknown and duplicate
// fields are not errors; the notes name each of them, even if there is an error. The error names
// all values that do not have the type of their field.
func decode(data []byte) (*v1alpha1.KubeProxyConfiguration, []string, error) {
	notes := laterDocuments(data)
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		strict := err
		if text, err = yaml.YAMLToJSON(data); err != nil {
			return nil, notes, fmt.Errorf("parse YAML or JSON: %w", err)
		}
		for line := range strings.Lines(strict.Error()) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "line ") {
				notes = append(notes, "duplicate field in the file, the last value is used: "+line)
			}
		}
	}
	if string(text) == "null" {
		return nil, notes, fmt.Errorf("the file is empty: want a %s of %s", fileKind, fileVersion)
	}
	var typ metav1.TypeMeta
	if err := json.Unmarshal(text, &typ); err != nil || typ.APIVersion != fileVersion || typ.Kind != fileKind {
		return nil, notes, fmt.Errorf("apiVersion %q, kind %q: want %s, %s", typ.APIVersion, typ.Kind, fileVersion, fileKind)
	}
	obj := new(v1alpha1.KubeProxyConfiguration)
	strict, err := kjson.UnmarshalStrict(text, obj)
	if err != nil {
		errs, unknown := typeErrors(text, err)
		for _, path := range unknown {
			notes = append(notes, fmt.Sprintf("%sunknown field %q", ignoredField, path))
		}
		return nil, notes, errors.Join(errs...)
	}
	for _, s := range strict {
		notes = append(notes, ignoredField+s.Error())
	}
	return obj, notes, nil
}

// documentStart matches the line that starts a YAML document.
var documentStart = regexp.MustCompile(`(?m)^---([ \t].*)?\r?$`)

// laterDocuments returns a note for each YAML document after the first. As in kube-proxy, they are
// ignored.
func laterDocuments(data []byte) (notes []string) {
	n := 0
	for _, doc := range documentStart.Split(string(data), -1) {
		text, err := yaml.YAMLToJSON([]byte(doc))
		if err == nil && string(text) == "null" {
			continue
		}
		if n++; n == 1 {
			continue
		}
		var typ metav1.TypeMeta
		_ = json.Unmarshal(text, &typ) // without a kind if it is not an object
		notes = append(notes, fmt.Sprintf("ignoring document %d of the file (%s): only the first one is used", n, cmp.Or(typ.Kind, "without kind")))
	}
	return notes
}

const ignoredField = "ignoring a field in the file: "

// typeErrors finds all values in the JSON text that do not fit the type of their field, and the
// paths of unknown fields. If it finds no such value, the only error is cause.
func typeErrors(text []byte, cause error) (errs []error, unknown []string) {
	var walk func(raw json.RawMessage, fields []field, path string)
	walk = func(raw json.RawMessage, fields []field, path string) {
		var object map[string]json.RawMessage
		if err := json.Unmarshal(raw, &object); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: want an object", cmp.Or(path, "the file"), raw))
			return
		}
		for name := range object {
			known := slices.ContainsFunc(fields, func(f field) bool { return f.name == name })
			switch typeMeta := path == "" && (name == "apiVersion" || name == "kind"); {
			case known || typeMeta:
			case path == "":
				unknown = append(unknown, name)
			default:
				unknown = append(unknown, path+"."+name)
			}
		}
		for _, f := range fields {
			value, present := object[f.name]
			switch {
			case !present:
			case f.fields != nil:
				walk(value, f.fields, f.path)
			case kjson.UnmarshalCaseSensitivePreserveInts(value, f.value.Addr().Interface()) != nil:
				errs = append(errs, fmt.Errorf("%s %s: want %s", f.path, value, wanted(f.value.Type())))
			}
		}
	}
	walk(text, tree(reflect.ValueOf(new(v1alpha1.KubeProxyConfiguration)).Elem(), ""), "")
	if errs == nil {
		errs = append(errs, cause)
	}
	slices.Sort(unknown)
	return errs, unknown
}

// wanted describes the values of a type.
func wanted(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[metav1.Duration]():
		return "a duration with a unit, such as 30s"
	case reflect.TypeFor[logsapi.TimeOrMetaDuration]():
		return "a duration with a unit, such as 5s, or nanoseconds"
	case reflect.TypeFor[logsapi.VModuleConfiguration]():
		return "a list of objects with filePattern and verbosity"
	case reflect.TypeFor[resource.QuantityValue]():
		return "a quantity such as 64Ki"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int32:
		return "a whole number of 32 bits"
	case reflect.Uint32:
		return "a whole number from 0"
	case reflect.Float32:
		return "a number"
	case reflect.Map:
		return "an object with true or false for each name"
	case reflect.Slice:
		return "a list of strings"
	}
	return "a string"
}

// field is one field of the file: a value, or an object of fields.
type field struct {
	name, path string
	value      reflect.Value
	fields     []field
}

// tree returns the fields of an object in the file, without apiVersion and kind.
func tree(v reflect.Value, path string) []field {
	var out []field
	for i := range v.NumField() {
		f, name := v.Type().Field(i), ""
		name, _, _ = strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Type == reflect.TypeFor[metav1.TypeMeta]():
		case name == "": // inlined
			out = append(out, tree(v.Field(i), path)...)
		case f.Type.Kind() == reflect.Struct && !isValue(f.Type):
			out = append(out, field{name: name, path: path + name, value: v.Field(i), fields: tree(v.Field(i), path+name+".")})
		default:
			out = append(out, field{name: name, path: path + name, value: v.Field(i)})
		}
	}
	return out
}

// isValue reports whether a struct type is a single value in the file.
func isValue(t reflect.Type) bool {
	return slices.Contains([]reflect.Type{
		reflect.TypeFor[metav1.Duration](), reflect.TypeFor[logsapi.TimeOrMetaDuration](), reflect.TypeFor[resource.QuantityValue](),
	}, t)
}

// fieldsOf returns all fields of the file by path, such as iptables.masqueradeBit.
func fieldsOf(obj *v1alpha1.KubeProxyConfiguration) map[string]reflect.Value {
	out := make(map[string]reflect.Value)
	var walk func([]field)
	walk = func(fields []field) {
		for _, f := range fields {
			if f.fields != nil {
				walk(f.fields)
			} else {
				out[f.path] = f.value
			}
		}
	}
	walk(tree(reflect.ValueOf(obj).Elem(), ""))
	return out
}

// fieldText returns the text of a field for its setting. As in kube-proxy, a field with the zero
// value is absent unless it is a pointer.
func fieldText(v reflect.Value) (text string, present bool) {
	if v.IsZero() {
		return "", false
	}
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	switch x := v.Interface().(type) {
	case metav1.Duration:
		return x.Duration.String(), true
	case logsapi.TimeOrMetaDuration:
		return x.Duration.Duration.String(), x.Duration.Duration != 0
	case resource.QuantityValue:
		return x.String(), !x.IsZero()
	case []string:
		return strings.Join(x, ","), len(x) > 0
	case logsapi.VModuleConfiguration:
		return logsapi.VModuleConfigurationPflag(&x).String(), len(x) > 0
	case map[string]bool:
		parts := make([]string, 0, len(x))
		for name, on := range x {
			parts = append(parts, fmt.Sprintf("%s=%t", name, on))
		}
		slices.Sort(parts)
		return strings.Join(parts, ","), len(x) > 0
	}
	return fmt.Sprint(v.Interface()), true
}

// setField writes the text of a setting into its field, by way of JSON.
func setField(v reflect.Value, text string) error {
	t := v.Type()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var value any
	switch {
	case isValue(t), t.Kind() == reflect.String:
		value = text
	case t.Kind() == reflect.Map:
		gates := make(map[string]bool)
		for _, pair := range split(text) {
			name, on, _ := strings.Cut(pair, "=")
			gates[name] = on == "true"
		}
		value = gates
	case t == reflect.TypeFor[logsapi.VModuleConfiguration]():
		var items logsapi.VModuleConfiguration
		if err := logsapi.VModuleConfigurationPflag(&items).Set(text); err != nil {
			return err
		}
		value = items
	case t.Kind() == reflect.Slice:
		value = split(text)
	default: // a bool or a number
		value = json.RawMessage(text)
	}
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v.Addr().Interface())
}

func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// object returns the Config in the format of the file.
func (c *Config) object() *v1alpha1.KubeProxyConfiguration {
	obj := &v1alpha1.KubeProxyConfiguration{TypeMeta: metav1.TypeMeta{APIVersion: fileVersion, Kind: fileKind}}
	fields := fieldsOf(obj)
	for _, s := range c.settings {
		if s.field == "" {
			continue
		}
		if err := setField(fields[s.field], s.get()); err != nil {
			panic(fmt.Sprintf("BUG: %s is set to %q: %v", s.field, s.get(), err))
		}
	}
	return obj
}

// YAML returns the Config as a file for --config, with all defaults. lost lists what the file
// cannot express, one sentence each: flags without a field, and values that mean "absent" in a
// field. Together with these flags, the file gives the same Config.
func (c *Config) YAML() (data []byte, lost []string, err error) {
	if data, err = yaml.Marshal(c.object()); err != nil {
		return nil, nil, fmt.Errorf("write a %s: %w", fileKind, err)
	}
	back := Default()
	if _, err := back.load(data); err != nil {
		return nil, nil, fmt.Errorf("read back the %s: %w", fileKind, err)
	}
	back.complete()
	for i, s := range c.settings {
		once := s.flag == "config" || s.flag == "write-config-to"
		if !once && !s.hidden && back.settings[i].get() != s.get() {
			lost = append(lost, fmt.Sprintf("the file cannot express --%s=%s: keep the flag", s.flag, s.get()))
		}
	}
	return data, slices.Compact(lost), nil
}
