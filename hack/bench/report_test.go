package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReport(t *testing.T) {
	results := []result{
		{proxy: "fairlead", mode: "nftables", services: 1000, endpoints: 10, rollSize: 1000, cold: 500 * time.Millisecond, firstSync: 200 * time.Millisecond, change50: time.Millisecond,
			peakRSS: 50 << 20, lockHeld: -1, restartWrites: 0, direct: 1, through: 0.9},
		{proxy: "kube-proxy", mode: "nftables", services: 1000, endpoints: 10, rollSize: 1000, cold: time.Second, change50: 330 * time.Millisecond,
			peakRSS: 200 << 20, lockHeld: -1, restartWrites: 3, direct: 0.5, through: 0.9},
		{proxy: "fairlead", mode: "iptables-nft", services: 1000, endpoints: 10, cold: 2 * time.Second},
		{proxy: "kube-proxy", mode: "iptables-nft", services: 1000, endpoints: 10, skipped: "left out: too slow\nmore"},
	}
	var b strings.Builder
	printTables(&b, results)
	for _, want := range []string{
		"nftables  fairlead  kube-proxy  ratio",
		"cold start 500ms 1s 2.0",
		"one change, median 1ms 330ms 330.0",
		"peak memory 50.0 MiB 200.0 MiB 4.0",
		"xtables lock held – –",
		"writes at restart 0 3 ∞",
		"connections pod to pod, ratio to no proxy 1.00 0.50 2.0",
		"cold start 2s –",
		"(kube-proxy: left out: too slow)",
	} {
		if !strings.Contains(squeeze(b.String()), squeeze(want)) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	path := filepath.Join(t.TempDir(), "results.csv")
	if err := writeCSV(path, results); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "proxy,mode,services,endpoints,skipped,cold_start_s,first_sync_s,change_p50_s"; !strings.HasPrefix(string(text), want) {
		t.Errorf("the CSV begins %.80q, want %q", text, want)
	}
	if want := "fairlead,nftables,1000,10,,0.5,0.2,0.001,"; !strings.Contains(string(text), want) {
		t.Errorf("no %q in\n%s", want, text)
	}
}

// squeeze replaces each run of blanks by one.
func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

func TestParse(t *testing.T) {
	s, err := parse([]string{"-services", "100,2000", "-modes", "ipvs", "-most", "kube-proxy ipvs=100"})
	if err != nil || len(s.sizes) != 2 || s.sizes[1] != 2000 || s.modes[0] != "ipvs" || s.most["kube-proxy ipvs"] != 100 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, args := range [][]string{{"-services", "1"}, {"-services", "many"}, {"-modes", "ebpf"}, {"-most", "x"}, {"more"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}
