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
	"k8s.io/apimachinery/pkg/runtime/schema"
	caseful "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/internal/cluster"
)

// maxListDepth limits Lists within Lists.
const maxListDepth = 4

// objectName identifies an object in a file.
type objectName struct {
	kind, namespace, name string
}

func (n objectName) String() string {
	if n.namespace == "" {
		return n.kind + " " + n.name
	}
	return n.kind + " " + n.namespace + "/" + n.name
}

// fileObject is an object from a file; exactly one of service, slice, node and cidrs is set.
type fileObject struct {
	name    objectName
	where   string
	service *cluster.Service
	slice   *cluster.Slice
	node    *cluster.Node
	cidrs   []netip.Prefix
}

// badObject is an object that could not be read. Its name may be incomplete.
type badObject struct {
	name objectName
	err  error
}

// parsed is the content of a file, in its order.
type parsed struct {
	objects []fileObject
	bad     []badObject
	// problems are invalid fields.
	problems []placedProblem
	// ignored are objects that somebody may expect to be used.
	ignored []ignored
	// seen counts the objects of known kinds, handled or not.
	seen int
	// empty means that the file has no documents.
	empty bool
}

type placedProblem struct {
	where string
	Problem
}

// ignored stands for all objects of a file that are ignored for the same reason.
type ignored struct {
	where string
	// first is one of them; more is the number of others.
	first objectName
	more  int
	why   string
}

func (i ignored) notice() notice {
	object := i.first.String()
	if i.more > 0 {
		object += fmt.Sprintf(" and %d more", i.more)
	}
	return notice{level: slog.LevelWarn, message: "ignoring object", object: object, problem: i.why, where: i.where}
}

// ignore records an object that is ignored. A dump may have thousands of a kind, so there is one
// notice for all.
func (p *parsed) ignore(where string, name objectName, why string) {
	for i := range p.ignored {
		if old := &p.ignored[i]; old.why == why && old.first.kind == name.kind {
			old.more++
			return
		}
	}
	p.ignored = append(p.ignored, ignored{where: where, first: name, why: why})
}

// reader parses files.
type reader struct {
	convert Converter
	log     *slog.Logger
}

// document is a document of a file and the line where it starts.
type document struct {
	line int
	text []byte
}

// parse parses a file of JSON or YAML documents. The error means that the whole file cannot be
// used.
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

// splitJSON splits a stream of JSON values. JSON is also YAML, except that YAML does not allow
// tabs.
func splitJSON(data []byte) ([]document, error) {
	var docs []document
	dec := json.NewDecoder(bytes.NewReader(data))
	for line, offset := 1, 0; ; {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) {
				offset = int(min(syntax.Offset, int64(len(data))))
			}
			return docs, fmt.Errorf("line %d: %w", 1+bytes.Count(data[:offset], []byte("\n")), err)
		}
		end := int(dec.InputOffset())
		line += bytes.Count(data[offset:end-len(raw)], []byte("\n"))
		docs = append(docs, document{line: line, text: raw})
		line += bytes.Count(raw, []byte("\n"))
		offset = end
	}
}

// splitYAML splits at lines that start with "---" or "..."; it drops documents without content.
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
		if content, ok := bytes.CutPrefix(line, []byte("---")); ok && startsBlank(content) {
			flush()
			line = append([]byte("   "), content...)
		} else if content, ok := bytes.CutPrefix(line, []byte("...")); ok && startsBlank(content) {
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

func startsBlank(b []byte) bool { return len(b) == 0 || strings.ContainsRune(" \t\r\n", rune(b[0])) }

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

// object reads an object or a list of objects. def is the type of items of a typed list, which need
// none.
func (r *reader) object(out *parsed, where string, text []byte, def typeMeta, depth int) {
	if string(text) == "null" {
		return
	}
	head := def
	if err := caseful.Unmarshal(text, &head); err != nil {
		out.bad = append(out.bad, badObject{err: fmt.Errorf("%s: not an object: %w", where, err)})
		return
	}
	kind, isList := strings.CutSuffix(head.Kind, "List")
	supported := versions[kind] != "" && head.APIVersion == versions[kind]
	why := unsupported(head.APIVersion, kind)
	switch {
	case isList && (supported || why != "" || head.String() == "v1 List"):
		r.list(out, where, text, head, depth)
	case why != "":
		out.ignore(where, nameOf(text, kind), why)
	case supported:
		name := nameOf(text, kind)
		if err := r.read(out, where, text, head, name); err != nil {
			out.bad = append(out.bad, badObject{name, fmt.Errorf("%s: %s: %w", where, name, err)})
			return
		}
		out.seen++
	case head.Kind == "" || head.APIVersion == "":
		out.bad = append(out.bad, badObject{err: fmt.Errorf("%s: apiVersion or kind is missing", where)})
	default:
		r.log.Debug("ignoring object of another kind", "where", where, "kind", head.String())
	}
}

// versions are the API versions of the kinds that are read.
var versions = map[string]string{"Service": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}

// unsupported explains why an object that old dumps have instead of a supported one is ignored. It
// returns nothing for other objects.
func unsupported(apiVersion, kind string) string {
	if apiVersion == "v1" && kind == "Endpoints" {
		return "Endpoints are not supported: add the EndpointSlices from kubectl get endpointslices -o yaml"
	}
	group, _, _ := strings.Cut(apiVersion, "/")
	if want := versions[kind]; strings.HasPrefix(want, group+"/") && want != apiVersion {
		return fmt.Sprintf("%s is not supported: want %s, which kubectl get prints if the API server has it", apiVersion, want)
	}
	return ""
}

func (r *reader) list(out *parsed, where string, text []byte, head typeMeta, depth int) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	err := caseful.Unmarshal(text, &list)
	if err == nil && depth == maxListDepth {
		err = errors.New("too many nested lists")
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

// nameOf returns the name of an object that may be malformed otherwise; the default namespace is
// "default".
func nameOf(text []byte, kind string) objectName {
	var o struct {
		Metadata struct {
			Namespace any `json:"namespace"`
			Name      any `json:"name"`
		} `json:"metadata"`
	}
	_ = caseful.Unmarshal(text, &o) // what cannot be read stays empty; read reports it
	name := objectName{kind: kind}
	name.name, _ = o.Metadata.Name.(string)
	if kind != "Node" && kind != "ServiceCIDR" {
		if name.namespace, _ = o.Metadata.Namespace.(string); name.namespace == "" {
			name.namespace = v1.NamespaceDefault
		}
	}
	return name
}

// read decodes and converts one object. Unknown fields are ignored.
func (r *reader) read(out *parsed, where string, text []byte, head typeMeta, name objectName) error {
	gvk := schema.FromAPIVersionAndKind(head.APIVersion, head.Kind)
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(text, &gvk, nil)
	if err != nil {
		return err
	}
	o := fileObject{name: name, where: where}
	var problems []Problem
	switch obj := obj.(type) {
	case *v1.Service:
		obj.Namespace = name.namespace
		if matches(r.convert.serviceSelector(), obj.Labels) {
			o.service, problems = r.convert.Service(obj)
		}
	case *discoveryv1.EndpointSlice:
		obj.Namespace = name.namespace
		if matches(r.convert.sliceSelector(), obj.Labels) {
			o.slice, problems = r.convert.Slice(obj)
			if why := unusedSlice(obj); why != "" {
				out.ignore(where, name, why)
			}
		}
	case *v1.Node:
		node := ConvertNode(obj)
		o.node = &node
	case *networkingv1.ServiceCIDR:
		o.cidrs = ConvertServiceCIDR(obj)
	}
	for _, p := range problems {
		out.problems = append(out.problems, placedProblem{where, p})
	}
	if o.service != nil || o.slice != nil || o.node != nil || len(o.cidrs) > 0 {
		out.objects = append(out.objects, o)
	}
	return nil
}

// unusedSlice explains why an EndpointSlice is not used, or returns nothing.
func unusedSlice(s *discoveryv1.EndpointSlice) string {
	switch {
	case s.AddressType == discoveryv1.AddressTypeFQDN:
		return "addressType FQDN is not supported, as in kube-proxy: want slices with IP addresses"
	case s.Labels[discoveryv1.LabelServiceName] == "":
		return "it belongs to no Service: want the label " + discoveryv1.LabelServiceName
	}
	return ""
}
