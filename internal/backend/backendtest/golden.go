package backendtest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/fwdtext"
)

var update = flag.Bool("update", false, "rewrite the golden files; commit a rewrite only if you understand every line of it")

// Golden compares what is rendered with the files testdata/*.txtar. Each is a table in text form, then programs: the name of
// each begins with the family that it is of, and render says what the rest of the name means, if there is any. A family that
// the table speaks of has a program. With -update the programs that a file has, be they empty, are written anew.
func Golden(t *testing.T, render func(t *testing.T, f fwd.Family, variant string, table *fwd.Table) string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) < 2 || archive.Files[0].Name != "table" {
				t.Fatal("want a table and at least one program")
			}
			text := string(archive.Files[0].Data)
			table, err := fwdtext.Read(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			// programs counts them by family.
			families, programs := make(map[string]fwd.Family), make(map[string]int)
			for _, f := range fwd.Families {
				families[f.String()] = f
			}
			for i := range archive.Files[1:] {
				program := &archive.Files[1+i]
				name, variant, _ := strings.Cut(program.Name, " ")
				f, ok := families[name]
				if !ok {
					t.Fatalf("%s: no family", program.Name)
				}
				programs[name]++
				got := render(t, f, variant, table)
				if *update {
					program.Data = []byte(got)
				} else if diff := cmp.Diff(string(program.Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", program.Name, diff)
				}
			}
			for name := range families {
				if programs[name] == 0 && strings.Contains(text, name) {
					t.Errorf("no program of %s, of which the table speaks", name)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
