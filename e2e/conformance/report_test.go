package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExceptions proves that the committed list can be read.
func TestExceptions(t *testing.T) {
	if _, err := parseExceptions(exceptionsText); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"*\tname", "*\t(\treason", "*\tname\t"} {
		if _, err := parseExceptions(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestResults reads a report with a test of each kind, and judges it.
func TestResults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conformance.json")
	report := `[{"StartTime":"2026-01-02T03:04:05Z","RunTime":60000000000,"SpecReports":[
		{"LeafNodeType":"SynchronizedBeforeSuite","State":"passed"},
		{"ContainerHierarchyTexts":["Services"],"LeafNodeType":"It","LeafNodeText":"one","State":"passed"},
		{"ContainerHierarchyTexts":["Services"],"LeafNodeType":"It","LeafNodeText":"two","State":"failed","Failure":{"Message":"no\nmore"}},
		{"ContainerHierarchyTexts":["Services"],"LeafNodeType":"It","LeafNodeText":"three","State":"skipped","Failure":{"Message":"needs a cloud"}},
		{"ContainerHierarchyTexts":["Other"],"LeafNodeType":"It","LeafNodeText":"four","State":"skipped"}]}]`
	if err := os.WriteFile(path, []byte(report), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := readResults(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := r.judge("kubeadm iptables"); n != 1 {
		t.Errorf("%d unexpected failures, want 1", n)
	}
	var out strings.Builder
	r.print(&out)
	want := "FAILED   Services two    no\nskipped  Services three  needs a cloud\n1 passed, 1 failed, 0 failed as expected, 1 skipped, in 1m0s\n"
	if out.String() != want {
		t.Errorf("printed\n%swant\n%s", out.String(), want)
	}
	if err := os.WriteFile(path, []byte(`[{"SpecReports":[{"LeafNodeType":"It","State":"skipped"}]}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readResults(path); err == nil {
		t.Error("a report in which no test ran: no error")
	}
}

// TestUpdateTable proves that a run replaces its own row alone.
func TestUpdateTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	page := "# Page\n\n" + tableBegin + "\n\n| Proxy | Mode | Passed |\n| --- | --- | --- |\n| b | iptables | 1 |\n| b | nftables | 2 |\n\n" + tableEnd + "\n\nThe end.\n"
	if err := os.WriteFile(path, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range [][]string{{"b", "nftables", "3"}, {"a", "iptables", "4"}} {
		if err := updateTable(path, row); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(page, "| b | iptables | 1 |\n| b | nftables | 2 |", "| a | iptables | 4 |\n| b | iptables | 1 |\n| b | nftables | 3 |", 1)
	if string(got) != want {
		t.Errorf("the page is now\n%s", got)
	}
}
