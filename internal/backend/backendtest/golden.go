package backendtest

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/fwdtext"
)

var update = flag.Bool("update", false, "rewrite the golden files; commit a rewrite only if you understand every line of it")

// Golden compares what is rendered with the files testdata/*.txtar. Each is a table in text form,
// then programs: the name of each begins with the family that it is of, and render says what the
// rest of the name means, if there is any. A family that the table speaks of has a program. With
// -update the programs that a file has, be they empty, are written anew.
func Golden(t *testing.T, render func(t *testing.T, f fwd.Family, variant string, table *fwd.Table) string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file, render) })
	}
}

func golden(t *testing.T, file string, render func(t *testing.T, f fwd.Family, variant string, table *fwd.Table) string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(archive.Files) < 2 || archive.Files[0].Name != "table" {
		t.Fatal("want a table and at least one program")
	}
	text := archive.Files[0].Data
	table, err := fwdtext.Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	rendered := make(map[fwd.Family]bool)
	for i := range archive.Files[1:] {
		program := &archive.Files[1+i]
		name, variant, _ := strings.Cut(program.Name, " ")
		at := slices.IndexFunc(fwd.Families[:], func(f fwd.Family) bool { return f.String() == name })
		if at < 0 {
			t.Fatalf("%s: no family", program.Name)
		}
		f := fwd.Families[at]
		rendered[f] = true
		got := render(t, f, variant, table)
		if *update {
			program.Data = []byte(got)
		} else if diff := cmp.Diff(string(program.Data), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", program.Name, diff)
		}
	}
	for _, f := range fwd.Families {
		if !rendered[f] && bytes.Contains(text, []byte(f.String())) {
			t.Errorf("the table has %s, but the file has no program for it", f)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
