package nftables

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/fairlead/fairlead/internal/fwd"
)

var updateGolden = flag.Bool("update", false, "rewrite the golden files; commit a rewrite only if you understand every line of it")

// withoutIdle leaves out the chains that are always there and to which nothing leads in this table.
func withoutIdle(fam fwd.Family, text string) string {
	for _, p := range ahead[fam.Index()]() {
		head := "\tchain " + p.id.Name + " {\n"
		if at := strings.Index(text, head); at >= 0 && !strings.Contains(text, "goto "+p.id.Name+"\n") && !strings.Contains(text, "goto "+p.id.Name+",") {
			end := at + strings.Index(text[at:], "\n\t}\n") + len("\n\t}\n")
			text = text[:at] + text[end:]
		}
	}
	return text
}

// Each file in testdata is a table and the program that is rendered of it, as nft -f takes it, without idle chains.
func TestGolden(t *testing.T) {
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
			want := make(map[string]string)
			for _, f := range archive.Files {
				want[f.Name] = string(f.Data)
			}
			table, err := fwd.ParseText(strings.NewReader(want["table"]))
			if err != nil {
				t.Fatal(err)
			}
			out := archive.Files[:1]
			for _, fam := range fwd.Families {
				if !strings.Contains(want["table"], fam.String()) {
					continue
				}
				var b bytes.Buffer
				if err := Render(&b, fam, table); err != nil {
					t.Fatal(err)
				}
				got := withoutIdle(fam, b.String())
				if *updateGolden {
					out = append(out, txtar.File{Name: fam.String(), Data: []byte(got)})
				} else if diff := cmp.Diff(want[fam.String()], got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", fam, diff)
				}
			}
			if *updateGolden {
				archive.Files = out
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
