package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the outputs in testdata")

// exec runs a command line and returns all that a user sees: output, lines of standard error with a
// mark, and the exit code if it is not 0.
func exec(t *testing.T, line string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), strings.Fields(line), streams{out: &out, err: &errs})
	text := out.String()
	for l := range strings.Lines(errs.String()) {
		text += "stderr: " + l
	}
	if code != 0 {
		text += fmt.Sprintf("exit code %d\n", code)
	}
	return text
}

// TestStories runs the commands of each archive in testdata among the archive's files, and compares
// what a user sees.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { story(t, path) })
	}
}

func story(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var commands, want string
	for _, f := range archive.Files {
		switch f.Name {
		case "commands":
			commands = string(f.Data)
		case "output":
			want = string(f.Data)
		default:
			name := filepath.Join(dir, f.Name)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, f.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Chdir(dir)
	var got strings.Builder
	for line := range strings.Lines(commands) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fmt.Fprintf(&got, "$ fairlead %s\n%s\n", line, exec(t, line))
	}
	if *update {
		archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "output" })
		archive.Files = append(archive.Files, txtar.File{Name: "output", Data: []byte(got.String())})
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Errorf("output differs (-want +got):\n%s", d)
	}
}

const oneService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIPs: [10.96.0.1]
  clusterIP: 10.96.0.1
  ipFamilies: [IPv4]
  ports: [{name: http, port: 80, protocol: TCP}]
`

// All commands that read the configuration print notes about it on standard error.
func TestNotesOfCommands(t *testing.T) {
	dir := t.TempDir()
	objects, conf := filepath.Join(dir, "o.yaml"), filepath.Join(dir, "c.conf")
	for path, text := range map[string]string{objects: oneService, conf: configHead + "mode: nftables\nold: 1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{"render", "dump", "trace 10.0.0.1 10.96.0.1:80/tcp", "trace -o json 10.0.0.1 10.96.0.1:80/tcp"} {
		for flags, code := range map[string]int{"--proxy-mode=iptables": 0, "--proxy-mode=userspace": 1} {
			var out, errs bytes.Buffer
			args := append(strings.Fields(command), "--objects", objects, "--config", conf, flags)
			if got := run(t.Context(), args, streams{&out, &errs}); got != code {
				t.Errorf("%s %s: exit code %d, want %d: %s", command, flags, got, code, errs.String())
			}
			if n := strings.Count(errs.String(), "note: ignoring a field in the file: unknown field \"old\"\n"); n != 1 || strings.Contains(out.String(), "note:") {
				t.Errorf("%s %s: said %d times, want once:\n%s%s", command, flags, n, errs.String(), out.String())
			}
			if code == 0 && !strings.Contains(errs.String(), "note: --proxy-mode iptables overrides the file's mode, which is nftables\n") {
				t.Errorf("%s: no word of the flag that wins:\n%s", command, errs.String())
			}
		}
	}
}

func TestTraceJSONKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.yaml")
	if err := os.WriteFile(path, []byte(oneService), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dst := range []string{"10.96.0.1:80/tcp", "10.96.0.9:80/udp"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"trace", "--objects", path, "-o", "json", "10.0.0.1", dst}, streams{&out, &errs}); code != 0 {
			t.Fatalf("exit code %d: %s", code, errs.String())
		}
		var got map[string]any
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"affinitySeconds", "candidates", "destination", "endpoints", "frontend", "masquerade", "notes", "reason", "service", "source",
			"sourceClass", "verdict"}, slices.Sorted(maps.Keys(got))); d != "" {
			t.Error(d)
		}
		for _, key := range []string{"endpoints", "candidates", "notes"} {
			if _, isList := got[key].([]any); !isList {
				t.Errorf("%s of %s are %v, want a list", key, dst, got[key])
			}
		}
	}
}

// TestTraceReadsStandardInput proves that each packet is answered before the next one is read.
func TestTraceReadsStandardInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.yaml")
	if err := os.WriteFile(path, []byte(oneService), 0o644); err != nil {
		t.Fatal(err)
	}
	in, packets, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func(old *os.File) { os.Stdin = old }(os.Stdin)
	os.Stdin = in
	answers, out := io.Pipe()
	code := make(chan int)
	go func() {
		code <- run(t.Context(), []string{"trace", "--objects", path, "--packets", "-"}, streams{out, io.Discard})
	}()
	read := json.NewDecoder(answers)
	for _, port := range []string{"80", "81"} {
		if _, err := fmt.Fprintf(packets, "10.0.0.1 10.96.0.1:%s/tcp\n", port); err != nil {
			t.Fatal(err)
		}
		var v verdict
		if err := read.Decode(&v); err != nil || v.Destination != "10.96.0.1:"+port+"/tcp" {
			t.Errorf("got %+v, %v", v, err)
		}
	}
	if err := packets.Close(); err != nil {
		t.Fatal(err)
	}
	if c := <-code; c != 0 {
		t.Errorf("exit code %d", c)
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	objects := write("o.yaml", oneService)
	broken := write("broken.yaml", "kind: [\n---\nkind: {\n")
	nodes := write("nodes.yaml", "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: n2}}\n- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n")
	tests := []struct {
		name, line string
		want       []string
	}{
		{"unknown command", "explain", []string{`"explain"`, "trace, render, dump, cleanup, version, help"}},
		{"bad flag of the daemon", "--masquerade-all=maybe", []string{"--masquerade-all", `"maybe"`, "true or false"}},
		{"objects that are not there", "--objects " + dir + "/none --hostname-override n1", []string{dir + "/none"}},
		{"trace without objects", "trace 10.0.0.1 10.96.0.1:80/tcp", []string{"--objects", "file or directory"}},
		{"trace without a destination", "trace --objects " + objects + " 10.0.0.1", []string{"1 arguments", "10.96.0.1:80/tcp"}},
		{"bad source", "trace --objects " + objects + " web 10.96.0.1:80/tcp", []string{`"web"`, "IP address"}},
		{"destination without protocol", "trace --objects " + objects + " 10.0.0.1 10.96.0.1:80", []string{`"10.96.0.1:80"`, "tcp, udp or sctp"}},
		{"IPv6 destination without brackets", "trace --objects " + objects + " fd00::1 fd00::2:80/tcp", []string{`"fd00::2:80/tcp"`, "[fd00::1]:80/tcp"}},
		{"bad format", "trace -o yaml --objects " + objects + " 10.0.0.1 10.96.0.1:80/tcp", []string{"--output", `"yaml"`, "text or json"}},
		{"packets and arguments", "trace --packets " + objects + " --objects " + objects + " 10.0.0.1 10.96.0.1:80/tcp", []string{`"10.0.0.1"`, "--packets"}},
		{"no file of packets", "trace --packets " + dir + "/nonesuch --objects " + objects, []string{"--packets", "nonesuch"}},
		{"two of standard input", "trace --packets - --objects -", []string{"--packets -", "--objects -"}},
		{"broken objects", "trace --objects " + broken + " 10.0.0.1 10.96.0.1:80/tcp", []string{"broken.yaml"}},
		{"several nodes", "trace --objects " + nodes + " 10.0.0.1 10.96.0.1:80/tcp", []string{"--node", "n1, n2"}},
		{"no podCIDR", "trace --node n1 --detect-local-mode NodeCIDR --objects " + nodes + " 10.0.0.1 10.96.0.1:80/tcp", []string{"podCIDR", "n1"}},
		{"bad local address", "trace --local-addresses eth0 --objects " + objects + " 10.0.0.1 10.96.0.1:80/tcp", []string{"--local-addresses", `"eth0"`, "IP addresses"}},
		{"bad family", "render --family v4 --objects " + objects, []string{"--family", `"v4"`, "ipv4 or ipv6"}},
		{"argument of render", "render --objects " + objects + " x", []string{`"x"`, "flags only"}},
		{"argument of dump", "dump --objects " + objects + " x", []string{`"x"`, "flags only"}},
		{"table and objects", "render --table t --objects " + objects, []string{"--table", "--objects"}},
		{"no table", "render --table " + dir + "/nonesuch", []string{"--table", "nonesuch"}},
		{"broken table", "render --table " + broken, []string{"broken.yaml: line 1: kind: [: want header, service"}},
		{"table and packets of standard input", "trace --packets - --table -", []string{"--packets -", "--table -"}},
		{"argument of version", "version x", []string{`"x"`, "none"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := run(t.Context(), strings.Fields(tt.line), streams{&out, &errs})
			lines := strings.Split(strings.TrimSuffix(errs.String(), "\n"), "\n")
			last := lines[len(lines)-1]
			if code != 1 || !strings.HasPrefix(last, "fairlead: ") || out.Len() > 0 {
				t.Fatalf("exit code %d, output %q, error %q", code, out.String(), errs.String())
			}
			if n := strings.Count(errs.String(), "fairlead: "); n != 1 || len(lines) != 1 && !strings.HasPrefix(tt.line, "--objects") {
				t.Errorf("want one line: %q", errs.String())
			}
			for _, part := range tt.want {
				if !strings.Contains(last, part) {
					t.Errorf("error %q does not say %q", last, part)
				}
			}
		})
	}
}

func TestHelp(t *testing.T) {
	tests := []struct {
		line string
		want []string
	}{
		{"help", []string{"fairlead trace", "fairlead render", "fairlead dump", "fairlead version"}},
		{"--help", []string{"--cluster-cidr", "its rules stay in force"}},
		{"trace --help", []string{"--in-interface", "--cluster-cidr", "SOURCE DESTINATION"}},
		{"render -h", []string{"--family", "--cluster-cidr", "--table"}},
		{"dump --help", []string{"--objects", "--cluster-cidr", "bug reports"}},
		{"version", []string{"fairlead ", "go1."}},
		{"--version", []string{"fairlead ", "go1."}},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(context.Background(), strings.Fields(tt.line), streams{&out, &errs}); code != 0 || errs.Len() > 0 {
				t.Fatalf("exit code %d, error %q", code, errs.String())
			}
			for _, part := range tt.want {
				if !strings.Contains(out.String(), part) {
					t.Errorf("does not say %q:\n%s", part, out.String())
				}
			}
		})
	}
}

// TestDump proves that trace and render say the same of a table that was dumped as of the objects.
func TestDump(t *testing.T) {
	dir := t.TempDir()
	objects, table := filepath.Join(dir, "o.yaml"), filepath.Join(dir, "table")
	if err := os.WriteFile(objects, []byte(oneService), 0o644); err != nil {
		t.Fatal(err)
	}
	command := func(line string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(line), streams{&out, &errs}); code != 0 {
			t.Fatalf("%s: exit code %d: %s", line, code, errs.String())
		}
		return out.String()
	}
	dump := func(mode string) string {
		t.Helper()
		dumped := command("dump --node n1 --cluster-cidr 10.0.0.0/8 --objects " + objects + " --mode " + mode)
		if err := os.WriteFile(table, []byte(dumped), 0o644); err != nil {
			t.Fatal(err)
		}
		return dumped
	}
	dumped := dump("iptables")
	for _, want := range []string{"header masqueradebit=14 cidr4=10.0.0.0/8 ", "\nfrontend 10.96.0.1:80/tcp kind=ClusterIP owner=default/web:http/tcp all=reject,no-endpoints\n"} {
		if !strings.Contains(dumped, want) {
			t.Errorf("does not say %q:\n%s", want, dumped)
		}
	}
	for _, line := range []string{"iptables render", "nftables render", "nftables trace 10.0.0.1 10.96.0.1:80/tcp"} {
		mode, line, _ := strings.Cut(line, " ")
		dump(mode)
		line += " --mode " + mode
		want := command(line + " --node n1 --cluster-cidr 10.0.0.0/8 --objects " + objects)
		if d := cmp.Diff(want, command(line+" --node n1 --table "+table)); d != "" {
			t.Errorf("%s (-objects +table):\n%s", line, d)
		}
	}
}

// TestRender leaves the content to the golden files of the backend.
func TestRender(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.yaml")
	if err := os.WriteFile(path, []byte(oneService), 0o644); err != nil {
		t.Fatal(err)
	}
	render := func(flags ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		args := append([]string{"render", "--objects", path, "--node", "n1", "--mode", "iptables"}, flags...)
		if code := run(t.Context(), args, streams{&out, &errs}); code != 0 {
			t.Fatalf("exit code %d: %s", code, errs.String())
		}
		return out.String()
	}
	both, v4, v6 := render(), render("--family", "ipv4"), render("--family", "ipv6")
	if !strings.HasPrefix(v4, "# IPv4\n*") || !strings.HasPrefix(v6, "# IPv6\n*") || both != v4+v6 {
		t.Errorf("not both families, each with its header line:\n%s", both)
	}
	if !strings.Contains(v4, "10.96.0.1") || strings.Contains(v6, "10.96.0.1") || strings.Count(v4, "COMMIT\n") != 2 {
		t.Errorf("not the program of the Service:\n%s", both)
	}
	if again := render(); again != both {
		t.Error("the second time the bytes differ")
	}
	if other := render("--iptables-masquerade-bit", "7"); other == both || !strings.Contains(other, "0x80/0x80") {
		t.Error("flags of the daemon are ignored")
	}
}
