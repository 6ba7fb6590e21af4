package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/fairlead/fairlead/"

// maxLines is the longest file that one reads in one sitting.
const maxLines = 800

// source is one parsed file.
type source struct {
	// dir and name are slash-separated and relative to the module.
	dir, name string
	test      bool
	lines     int
	file      *ast.File
	fset      *token.FileSet
}

func (s source) imports() []string {
	var out []string
	for _, i := range s.file.Imports {
		p, _ := strconv.Unquote(i.Path.Value) // the parser has read it
		out = append(out, p)
	}
	return out
}

// load parses all files below internal and cmd.
func load(t *testing.T) []source {
	t.Helper()
	var out []source
	for _, top := range []string{"internal", "cmd"} {
		root := filepath.Join("..", "..", top)
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "testdata" {
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(p, ".go") {
				return nil
			}
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(filepath.Join("..", ".."), p)
			if err != nil {
				return err
			}
			rel = filepath.ToSlash(rel)
			out = append(out, source{
				dir: path.Dir(rel), name: path.Base(rel), test: strings.HasSuffix(p, "_test.go"),
				lines: strings.Count(string(text), "\n"), file: f, fset: fset,
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// fits says whether a pattern matches a package.
func fits(dir, pattern string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return dir == tree || strings.HasPrefix(dir, tree+"/")
	}
	return dir == pattern
}

func roomOf(dir string) (room, bool) {
	i := slices.IndexFunc(rooms, func(r room) bool { return fits(dir, r.path) })
	if i < 0 {
		return room{}, false
	}
	return rooms[i], true
}

// door returns why a package may not import another one; empty if it may.
func door(r room, imp string) string {
	switch first, _, _ := strings.Cut(imp, "/"); {
	case strings.HasPrefix(imp, module):
		dir := strings.TrimPrefix(imp, module)
		if slices.ContainsFunc(r.inside, func(p string) bool { return fits(dir, p) }) || strings.HasSuffix(r.path, "/...") && fits(dir, r.path) {
			return ""
		}
		return "the table of imports does not allow this"
	case strings.Contains(first, "."):
		if slices.ContainsFunc(r.outside, func(p string) bool { return imp == p || strings.HasPrefix(imp, strings.TrimSuffix(p, "/")+"/") }) {
			return ""
		}
		return "this dependency belongs in another package"
	case slices.Contains(effects, imp) && !slices.Contains(r.effects, imp):
		return "this package has no effects of that kind"
	case slices.Contains(pure, r.path) && slices.Contains(impure, imp) && !slices.Contains(r.effects, imp):
		return "this package is pure"
	}
	return ""
}

func TestDoors(t *testing.T) {
	for _, s := range load(t) {
		r, ok := roomOf(s.dir)
		if !ok {
			t.Errorf("%s is not in the table of imports", s.dir)
			continue
		}
		if s.test {
			continue
		}
		for _, imp := range s.imports() {
			if why := door(r, imp); why != "" {
				t.Errorf("%s/%s imports %s: %s", s.dir, s.name, imp, why)
			}
			if to, ok := roomOf(strings.TrimPrefix(imp, module)); ok && to.test && !r.test {
				t.Errorf("%s/%s imports %s, which is for tests", s.dir, s.name, imp)
			}
		}
	}
}

// TestDoorRule checks the rule itself: a mistake in it could allow every import.
func TestDoorRule(t *testing.T) {
	tests := []struct {
		name, dir, imp string
		open           bool
	}{
		{"the standard library", "internal/fwd", "net/netip", true},
		{"a clock in a pure package", "internal/fwd", "time", false},
		{"randomness in a pure package", "internal/compile", "math/rand/v2", false},
		{"a listed package", "internal/compile", module + "internal/fwd", true},
		{"the wrong way round", "internal/fwd", module + "internal/compile", false},
		{"the loop and a concrete backend", "internal/reconcile", module + "internal/backend/iptables", false},
		{"the loop and the contract", "internal/reconcile", module + "internal/backend", true},
		{"a backend and the host", "internal/backend/iptables", module + "internal/host/xtables", true},
		{"exec in a backend", "internal/backend/iptables", "os/exec", false},
		{"exec on the host", "internal/host/xtables", "os/exec", true},
		{"client-go in kube", "internal/kube", "k8s.io/client-go/rest", true},
		{"client-go in the loop", "internal/reconcile", "k8s.io/client-go/rest", false},
		{"a name that begins the same", "internal/config", "github.com/spf13/pflagged", false},
		{"the command and everything inside", "cmd/fairlead", module + "internal/host/link", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, ok := roomOf(tt.dir)
			if !ok {
				t.Fatalf("%s is not in the table", tt.dir)
			}
			if why := door(r, tt.imp); (why == "") != tt.open {
				t.Errorf("%s importing %s: %q, want open %v", tt.dir, tt.imp, why, tt.open)
			}
		})
	}
}

func TestEveryPackageIsDescribed(t *testing.T) {
	described := make(map[string]bool)
	for _, s := range load(t) {
		if !s.test {
			described[s.dir] = described[s.dir] || s.name == "doc.go" && s.file.Doc != nil
		}
	}
	for dir, ok := range described {
		if !ok {
			t.Errorf("%s has no doc.go with a package comment", dir)
		}
	}
}

func TestHouseRules(t *testing.T) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "types", "manager", "misc", "base"}
	for _, s := range load(t) {
		where := s.dir + "/" + s.name
		if s.lines > maxLines {
			t.Errorf("%s has %d lines, want at most %d: look for the second thing it does", where, s.lines, maxLines)
		}
		if slices.Contains(vague, path.Base(s.dir)) {
			t.Errorf("%s: a package is named for what it is responsible for", s.dir)
		}
		for _, group := range s.file.Comments {
			if text := group.Text(); strings.Contains(text, "TODO") || strings.Contains(text, "FIXME") {
				if s.dir != "internal/archtest" {
					t.Errorf("%s: unfinished work in a comment", s.fset.Position(group.Pos()))
				}
			}
		}
		if r, ok := roomOf(s.dir); ok && r.test {
			s.test = true // what supports tests may do what tests may
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if why := frowned(s, n); why != "" {
				t.Errorf("%s: %s", s.fset.Position(n.Pos()), why)
			}
			return true
		})
	}
}

// frowned returns which rule a piece of code breaks; empty if none.
func frowned(s source, n ast.Node) string {
	switch n := n.(type) {
	case *ast.FuncDecl:
		if n.Recv == nil && n.Name.Name == "init" && !s.test {
			return "init hides what happens when"
		}
	case *ast.SelectorExpr:
		pkg, ok := n.X.(*ast.Ident)
		if !ok {
			return ""
		}
		switch call := pkg.Name + "." + n.Sel.Name; {
		case slices.Contains(pure, s.dir) && pkg.Name == "time" && !slices.Contains([]string{"Time", "Duration"}, n.Sel.Name) && !s.test:
			return "this package has no clock"
		case call == "context.TODO":
			return "a context comes from the caller"
		case s.test || strings.HasPrefix(s.name, "fake"):
		case call == "context.Background" && s.dir != "cmd/fairlead":
			return "a context comes from the caller"
		case call == "time.Sleep":
			return "waiting is done with a timer and a context"
		case (call == "os.Exit" || call == "log.Fatal" || call == "log.Fatalf") && s.dir != "cmd/fairlead":
			return "only main ends the process"
		case pkg.Name == "fmt" && strings.HasPrefix(n.Sel.Name, "Print") || call == "os.Stdout" || call == "os.Stderr":
			if s.dir != "cmd/fairlead" {
				return "libraries print nothing"
			}
		}
	}
	return ""
}
