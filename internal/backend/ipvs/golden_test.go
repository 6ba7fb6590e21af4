package ipvs

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/fairlead/fairlead/internal/backend/ipvs/ipvssim"
	"github.com/fairlead/fairlead/internal/fwd"
)

var update = flag.Bool("update", false, "rewrite the golden files; commit a rewrite only if you understand every line of it")

// Each file in testdata is a table and the programs that are rendered of it: a file "IPv4 route" is that of IPv4 with
// --ipvs-vip=route.
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
			if archive.Files[0].Name != "table" || len(archive.Files) == 1 {
				t.Fatal("want a table and at least one program")
			}
			table, err := fwd.ParseText(bytes.NewReader(archive.Files[0].Data))
			if err != nil {
				t.Fatal(err)
			}
			for i, f := range archive.Files[1:] {
				family, mode, _ := strings.Cut(f.Name, " ")
				got := rendered(t, family, mode, table)
				if *update {
					archive.Files[1+i].Data = []byte(got)
				} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, diff)
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

// rendered is the program of a table, which ipvssim has read.
func rendered(t *testing.T, family, mode string, table *fwd.Table) string {
	t.Helper()
	f, ok := map[string]fwd.Family{"IPv4": fwd.IPv4, "IPv6": fwd.IPv6}[family]
	if !ok {
		t.Fatalf("family %q", family)
	}
	vips, err := ParseVIPMode(mode)
	if err != nil {
		t.Fatal(err)
	}
	h := table.Header()
	o := RenderOptions{VIPs: vips, HairpinBPF: true, RandomFully: true}
	for _, a := range h.LocalAddrs {
		if fwd.FamilyOf(a) == f {
			o.NodeIP = a
			break
		}
	}
	var b bytes.Buffer
	if err := Render(&b, f, o, table); err != nil {
		t.Fatal(err)
	}
	if _, err := ipvssim.Parse(f, b.String(), h.LocalAddrs); err != nil {
		t.Errorf("%s %s: %v", family, mode, err)
	}
	return b.String()
}
