package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

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

// load takes in the file. What flags say is said again on top of it, and a note tells what they replace. The error means
// that the file cannot be read at all, otherwise the refusals are all that is wrong in it.
func (c *Config) load(data []byte) ([]refusal, error) {
	obj, notes, err := decode(data)
	c.notes = append(c.notes, notes...)
	if err != nil {
		return nil, err
	}
	fields := fieldsOf(obj)
	var out []refusal
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
		if err := s.say(text, byFile); err != nil {
			out = append(out, s.refuse(c.ConfigFile+": "+s.field, text, err))
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
				c.notes = append(c.notes, fmt.Sprintf("--%s %s wins over the file's %s, which is %s", f.name, f.text, s.field, before[i]))
			}
		}
	}
	return out, nil
}

// decode reads a KubeProxyConfiguration in YAML or JSON. As for kube-proxy, fields that are not known or are there twice
// are no error; the notes name each, also where there is an error. All values that are not of their field's type are named
// in the error.
func decode(data []byte) (*v1alpha1.KubeProxyConfiguration, []string, error) {
	notes := laterDocuments(data)
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		strict := err
		if text, err = yaml.YAMLToJSON(data); err != nil {
			return nil, notes, fmt.Errorf("want YAML or JSON: %w", err)
		}
		for line := range strings.Lines(strict.Error()) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "line ") {
				notes = append(notes, "the file's last word counts: "+line)
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

// documentStart is the line that begins a YAML document.
var documentStart = regexp.MustCompile(`(?m)^---([ \t].*)?\r?$`)

// laterDocuments names the documents of a YAML file after the first, which alone counts, as for kube-proxy.
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
		_ = json.Unmarshal(text, &typ) // what is no object has no kind
		notes = append(notes, fmt.Sprintf("document %d of the file (%s) is ignored: only the first one counts", n, cmp.Or(typ.Kind, "without a kind")))
	}
	return notes
}

const ignoredField = "the file has a field that is ignored: "

// typeErrors finds all values in the JSON text that do not fit the type of their field, without one the cause is all; and the
// paths of the fields that are not known.
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

// wanted says what a field of the type takes.
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
		return "a list of texts"
	}
	return "text"
}

// field is one field of the file: a value, or an object of fields.
type field struct {
	name, path string
	value      reflect.Value
	fields     []field
}

// tree lists the fields of an object of the file, without its apiVersion and kind.
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

// isValue says that a struct is one value in the file.
func isValue(t reflect.Type) bool {
	return slices.Contains([]reflect.Type{
		reflect.TypeFor[metav1.Duration](), reflect.TypeFor[logsapi.TimeOrMetaDuration](), reflect.TypeFor[resource.QuantityValue](),
	}, t)
}

// fieldsOf finds the values of a file's object by path, such as iptables.masqueradeBit.
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

// Fields lists the paths of all fields of KubeProxyConfiguration.
func Fields() []string {
	var out []string
	for path := range fieldsOf(new(v1alpha1.KubeProxyConfiguration)) {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// fieldText is the text of a field's value as its setting takes it. As for kube-proxy, a zero value means that the field
// is not there, unless the field is a pointer.
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
		parts := make([]string, 0, len(x))
		for _, item := range x {
			parts = append(parts, fmt.Sprintf("%s=%d", item.FilePattern, item.Verbosity))
		}
		return strings.Join(parts, ","), len(x) > 0
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

// setField writes the text of a setting into its field.
func setField(v reflect.Value, text string) error {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	duration := func() (metav1.Duration, error) {
		d, err := time.ParseDuration(text)
		return metav1.Duration{Duration: d}, err
	}
	var err error
	switch p := v.Addr().Interface().(type) {
	case *metav1.Duration:
		*p, err = duration()
	case *logsapi.TimeOrMetaDuration:
		p.SerializeAsString = true
		p.Duration, err = duration()
	case *resource.QuantityValue:
		err = p.Set(text)
	case *[]string:
		*p = split(text)
	case *logsapi.VModuleConfiguration:
		for _, pair := range split(text) {
			pattern, level, _ := strings.Cut(pair, "=")
			n, perr := strconv.ParseUint(level, 10, 32)
			err = errors.Join(err, perr)
			*p = append(*p, logsapi.VModuleItem{FilePattern: pattern, Verbosity: logsapi.VerbosityLevel(n)})
		}
	case *map[string]bool:
		*p = make(map[string]bool)
		for _, pair := range split(text) {
			name, on, _ := strings.Cut(pair, "=")
			(*p)[name] = on == "true"
		}
	default:
		err = setBasic(v, text)
	}
	return err
}

// setBasic writes a text into a value of a basic kind.
func setBasic(v reflect.Value, text string) error {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		v.SetBool(b)
		return err
	case reflect.Int32:
		n, err := strconv.ParseInt(text, 10, 32)
		v.SetInt(n)
		return err
	case reflect.Uint32:
		n, err := strconv.ParseUint(text, 10, 32)
		v.SetUint(n)
		return err
	case reflect.Float32:
		f, err := strconv.ParseFloat(text, 32)
		v.SetFloat(f)
		return err
	default:
		panic(fmt.Sprintf("BUG: a field of type %s", v.Type()))
	}
	return nil
}

func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// object is the Config in the form of the file.
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

// YAML is the Config as a file for --config, with all defaults. lost says what such a file cannot have, one sentence each:
// flags without a field, and values that a field takes for absent. With the same flags for these the file gives the same
// Config.
func (c *Config) YAML() (data []byte, lost []string, err error) {
	if data, err = yaml.Marshal(c.object()); err != nil {
		return nil, nil, fmt.Errorf("write a %s: %w", fileKind, err)
	}
	back := Default()
	if _, err := back.load(data); err != nil {
		return nil, nil, fmt.Errorf("read the %s that was written: %w", fileKind, err)
	}
	back.complete()
	for i, s := range c.settings {
		once := s.flag == "config" || s.flag == "write-config-to"
		if !once && !s.hidden && back.settings[i].get() != s.get() {
			lost = append(lost, fmt.Sprintf("the file cannot say --%s=%s: keep the flag", s.flag, s.get()))
		}
	}
	return data, slices.Compact(lost), nil
}
