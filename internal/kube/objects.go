package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	caseful "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/internal/cluster"
)

// maxListDepth bounds Lists within Lists.
const maxListDepth = 4

// objectName identifies an object of a file.
type objectName struct {
	kind, namespace, name string
}

func (n objectName) String() string {
	if n.namespace == "" {
		return n.kind + " " + n.name
	}
	return n.kind + " " + n.namespace + "/" + n.name
}

// fileObject is one handled object of a file; exactly one of service, slice, node and cidrs is set.
type fileObject struct {
	name    objectName
	where   string
	service *cluster.Service
	slice   *cluster.Slice
	node    *cluster.Node
	cidrs   []netip.Prefix
}

// badObject is an object that could not be read; its name is as much as could be found out.
type badObject struct {
	name objectName
	err  error
}

// parsed is what a file has in it, in the order of the file.
type parsed struct {
	objects []fileObject
	bad     []badObject
	// problems are those of fields, with the place in the file.
	problems []placedProblem
	// ignored are objects that somebody may have expected to count.
	ignored []ignored
	// seen counts the objects of the kinds that are read, handled or not.
	seen int
	// empty says that there is nothing in the file, or nothing but comments.
	empty bool
}

// ignored stands for all objects of a file that are ignored for one reason.
type ignored struct {
	where string
	// first is one of them, and more is how many others there are.
	first objectName
	more  int
	why   string
}

func (i ignored) notice() notice {
	object := i.first.String()
	if i.more > 0 {
		object += fmt.Sprintf(" and %d more", i.more)
	}
	return notice{level: slog.LevelWarn, message: "object is ignored", object: object, problem: i.why, where: i.where}
}

// ignore takes note of an object that does not count. A dump may have thousands of a kind, so one notice stands for all.
func (p *parsed) ignore(where string, name objectName, why string) {
	for i := range p.ignored {
		if old := &p.ignored[i]; old.why == why && old.first.kind == name.kind {
			old.more++
			return
		}
	}
	p.ignored = append(p.ignored, ignored{where: where, first: name, why: why})
}

type placedProblem struct {
	where string
	Problem
}

// reader turns the text of files into objects.
type reader struct {
	convert  ConvertOptions
	interned *interner
	log      *slog.Logger
}

// document is one document of a file, and the line it begins on.
type document struct {
	line int
	text []byte
}

// parse reads a file of JSON or YAML documents. An error means that the file as a whole is not to be used.
func (r *reader) parse(file string, data []byte) (parsed, error) {
	var out parsed
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	split := splitYAML
	if start := bytes.TrimLeft(data, " \t\r\n"); len(start) > 0 && start[0] == '{' {
		split = splitJSON
	}
	docs, err := split(data)
	out.empty = len(docs) == 0
	for i, d := range docs {
		where := fmt.Sprintf("%s: document %d (line %d)", file, i+1, d.line)
		text, err := d.json()
		if err != nil {
			return parsed{}, fmt.Errorf("%s: %w", where, err)
		}
		r.object(&out, where, text, typeMeta{}, 0)
	}
	if err != nil {
		return parsed{}, fmt.Errorf("%s: %w", file, err)
	}
	return out, nil
}

// splitJSON cuts a stream of JSON values. JSON is YAML too, but YAML wants no tabs.
func splitJSON(data []byte) ([]document, error) {
	var docs []document
	dec := json.NewDecoder(bytes.NewReader(data))
	for line, at := 1, 0; ; {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) {
				at = int(min(syntax.Offset, int64(len(data))))
			}
			return docs, fmt.Errorf("line %d: %w", 1+bytes.Count(data[:at], []byte("\n")), err)
		}
		end := int(dec.InputOffset())
		start := end - len(raw)
		line += bytes.Count(data[at:start], []byte("\n"))
		docs = append(docs, document{line: line, text: raw})
		line += bytes.Count(raw, []byte("\n"))
		at = end
	}
}

// splitYAML cuts at lines that begin with "---" or "..."; documents without content are left out.
func splitYAML(data []byte) ([]document, error) {
	var docs []document
	var current document
	flush := func() {
		if current.text != nil {
			docs = append(docs, current)
		}
		current = document{}
	}
	number := 0
	for line := range bytes.Lines(data) {
		number++
		if rest, ok := bytes.CutPrefix(line, []byte("---")); ok && blankAtStart(rest) {
			flush()
			line = append([]byte("   "), rest...)
		} else if rest, ok := bytes.CutPrefix(line, []byte("...")); ok && blankAtStart(rest) {
			flush()
			continue
		}
		if current.text == nil {
			if trimmed := bytes.TrimSpace(line); len(trimmed) == 0 || trimmed[0] == '#' || line[0] == '%' {
				continue
			}
			current.line = number
		}
		current.text = append(current.text, line...)
	}
	flush()
	return docs, nil
}

func blankAtStart(b []byte) bool { return len(b) == 0 || strings.ContainsRune(" \t\r\n", rune(b[0])) }

// json returns the document as JSON. Line numbers in errors are those of the file.
func (d document) json() ([]byte, error) {
	if len(d.text) > 0 && d.text[0] == '{' && json.Valid(d.text) {
		return d.text, nil
	}
	text, err := yaml.YAMLToJSON(d.text)
	if err == nil {
		return text, nil
	}
	if _, placed := yaml.YAMLToJSON(append(bytes.Repeat([]byte("\n"), d.line-1), d.text...)); placed != nil {
		err = placed
	}
	return nil, errors.New(strings.Join(strings.Fields(err.Error()), " ")) // on one line
}

type typeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

func (t typeMeta) String() string { return t.APIVersion + " " + t.Kind }

// object reads one object, or a list of them. The items of a list whose kind says so need no kind of their own.
func (r *reader) object(out *parsed, where string, text []byte, def typeMeta, depth int) {
	if string(text) == "null" {
		return
	}
	head := def
	if err := caseful.Unmarshal(text, &head); err != nil {
		out.bad = append(out.bad, badObject{err: fmt.Errorf("%s: not an object: %w", where, err)})
		return
	}
	switch head.String() {
	case "v1 List", "v1 ServiceList", "v1 NodeList", "discovery.k8s.io/v1 EndpointSliceList", "networking.k8s.io/v1 ServiceCIDRList":
		r.list(out, where, text, head, depth)
	case "v1 Service", "v1 Node", "discovery.k8s.io/v1 EndpointSlice", "networking.k8s.io/v1 ServiceCIDR":
		name := nameOf(text, head.Kind)
		if err := r.read(out, where, text, name); err != nil {
			out.bad = append(out.bad, badObject{name, fmt.Errorf("%s: %s: %w", where, name, err)})
			return
		}
		out.seen++
	default:
		if why := unread(head); why != "" {
			if strings.HasSuffix(head.Kind, "List") {
				r.list(out, where, text, head, depth)
			} else {
				out.ignore(where, nameOf(text, head.Kind), why)
			}
			return
		}
		if head.Kind == "" || head.APIVersion == "" {
			out.bad = append(out.bad, badObject{err: fmt.Errorf("%s: apiVersion or kind is missing", where)})
			return
		}
		r.log.Debug("object of another kind is ignored", "where", where, "kind", head.String())
	}
}

// versions are the API versions in which kinds are read.
var versions = map[string]string{"Service": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}

// unread says why an object, or a list of some, that old dumps have in place of what is read does not count. It says nothing of
// other objects.
func unread(t typeMeta) string {
	kind := strings.TrimSuffix(t.Kind, "List")
	if t.APIVersion == "v1" && kind == "Endpoints" {
		return "endpoints are taken from EndpointSlices: add those that kubectl get endpointslices -o yaml prints"
	}
	group, _, _ := strings.Cut(t.APIVersion, "/")
	if want := versions[kind]; strings.HasPrefix(want, group+"/") && want != t.APIVersion {
		return fmt.Sprintf("%s is not read: want %s, which kubectl get prints on an API server that has it", t.APIVersion, want)
	}
	return ""
}

func (r *reader) list(out *parsed, where string, text []byte, head typeMeta, depth int) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	err := caseful.Unmarshal(text, &list)
	if err == nil && depth == maxListDepth {
		err = errors.New("too many lists within lists")
	}
	if err != nil {
		out.bad = append(out.bad, badObject{err: fmt.Errorf("%s: %s: %w", where, head.Kind, err)})
		return
	}
	def := typeMeta{APIVersion: head.APIVersion, Kind: strings.TrimSuffix(head.Kind, "List")}
	if def.Kind == "" {
		def = typeMeta{}
	}
	for i, item := range list.Items {
		r.object(out, fmt.Sprintf("%s: item %d", where, i+1), item, def, depth+1)
	}
}

// nameOf finds the name of an object that may be malformed elsewhere; the namespace is "default" where it is left out.
func nameOf(text []byte, kind string) objectName {
	var o struct {
		Metadata struct {
			Namespace any `json:"namespace"`
			Name      any `json:"name"`
		} `json:"metadata"`
	}
	_ = caseful.Unmarshal(text, &o) // what cannot be read stays empty, and is reported with the rest of the object
	name := objectName{kind: kind}
	name.name, _ = o.Metadata.Name.(string)
	if kind != "Node" && kind != "ServiceCIDR" {
		if name.namespace, _ = o.Metadata.Namespace.(string); name.namespace == "" {
			name.namespace = v1.NamespaceDefault
		}
	}
	return name
}

// read decodes and converts one object. Fields that are not known are tolerated.
func (r *reader) read(out *parsed, where string, text []byte, name objectName) error {
	o := fileObject{name: name, where: where}
	var problems []Problem
	switch name.kind {
	case "Service":
		var s v1.Service
		if err := caseful.Unmarshal(text, &s); err != nil {
			return err
		}
		s.Namespace = name.namespace
		if r.convert.takesService(s.Labels) {
			o.service, problems = convertService(&s, r.convert, r.interned)
		}
	case "EndpointSlice":
		var s discoveryv1.EndpointSlice
		if err := caseful.Unmarshal(text, &s); err != nil {
			return err
		}
		s.Namespace = name.namespace
		if r.convert.takesSlice(s.Labels) {
			o.slice, problems = convertSlice(&s, r.interned)
			switch {
			case s.AddressType == discoveryv1.AddressTypeFQDN:
				out.ignore(where, name, "addressType FQDN is served neither here nor by kube-proxy: want slices with IP addresses")
			case s.Labels[discoveryv1.LabelServiceName] == "":
				out.ignore(where, name, "it belongs to no Service: want the label "+discoveryv1.LabelServiceName)
			}
		}
	case "Node":
		var n v1.Node
		if err := caseful.Unmarshal(text, &n); err != nil {
			return err
		}
		node := ConvertNode(&n)
		o.node = &node
	case "ServiceCIDR":
		var s networkingv1.ServiceCIDR
		if err := caseful.Unmarshal(text, &s); err != nil {
			return err
		}
		o.cidrs = ConvertServiceCIDR(&s)
	}
	for _, p := range problems {
		out.problems = append(out.problems, placedProblem{where, p})
	}
	if o.service != nil || o.slice != nil || o.node != nil || len(o.cidrs) > 0 {
		out.objects = append(out.objects, o)
	}
	return nil
}
