package hosttest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMakefileRunsWhatNeedsTheVM: each test whose Need only the emulated machine fulfills is named
// in make test-vm, so that none is skipped everywhere.
func TestMakefileRunsWhatNeedsTheVM(t *testing.T) {
	features := map[string]Feature{"IPVS": IPVS, "Dummy": Dummy, "SCTP": SCTP, "NFTables": NFTables, "Zones": Zones}
	makefile, err := os.ReadFile("../../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	check := func(path string, f *ast.FuncDecl) {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || name(call.Fun) != "Need" {
				return true
			}
			var needs []Feature
			for _, arg := range call.Args {
				if feature, ok := features[name(arg)]; ok {
					needs = append(needs, feature)
				}
			}
			if len(needs) == 0 || !slices.Equal(suitable(needs), []Target{InVM}) {
				return true
			}
			found++
			if !strings.Contains(string(makefile), "'^"+f.Name.Name+"$$'") {
				t.Errorf("%s: %s needs the emulated machine, and VM_PACKAGES in the Makefile does not name it", path, f.Name.Name)
			}
			return true
		})
	}
	for _, top := range []string{"../../../internal", "../../../cmd", "../../../e2e"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && strings.HasPrefix(f.Name.Name, "Test") {
					check(path, f)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("no such test was found")
	}
}

// name returns an identifier without its package.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
