package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// column is one figure of a result.
type column struct {
	// name is the name of the CSV column, with its unit.
	name string
	// title is the title of the table's row.
	title string
	// value returns the figure, negative if it was not measured.
	value func(*result) float64
	// text formats a value.
	text func(float64) string
	// more is true if larger is better.
	more bool
}

func seconds(d time.Duration) float64 {
	if d < 0 {
		return -1
	}
	return d.Seconds()
}

func duration(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

func mebibytes(b float64) string { return fmt.Sprintf("%.1f MiB", b/(1<<20)) }
func ratioText(r float64) string { return fmt.Sprintf("%.2f", r) }

// columns are all figures, in the order of the table.
var columns = []column{
	{"cold_start_s", "cold start", func(r *result) float64 { return seconds(r.cold) }, duration, false},
	{"first_sync_s", "first programming, by its own metric", func(r *result) float64 { return seconds(r.firstSync) }, duration, false},
	{"change_p50_s", "one change, median", func(r *result) float64 { return seconds(r.change50) }, duration, false},
	{"change_p99_s", "one change, p99", func(r *result) float64 { return seconds(r.change99) }, duration, false},
	{"change_cpu_s", "CPU for a change", func(r *result) float64 { return seconds(r.changeCPU) }, duration, false},
	{"rolling_s", "rolling update", func(r *result) float64 { return seconds(r.roll) }, duration, false},
	{"rolling_cpu_s", "CPU of the rolling update", func(r *result) float64 { return seconds(r.rollCPU) }, duration, false},
	{"peak_rss_bytes", "peak memory", func(r *result) float64 { return float64(r.peakRSS) }, mebibytes, false},
	{"steady_rss_bytes", "steady memory", func(r *result) float64 { return float64(r.steadyRSS) }, mebibytes, false},
	{"xtables_lock_s", "xtables lock held", func(r *result) float64 { return seconds(r.lockHeld) }, duration, false},
	{"api_bytes", "read from the API", func(r *result) float64 { return float64(r.apiBytes) }, mebibytes, false},
	{"restart_s", "restart, nothing changed", func(r *result) float64 { return seconds(r.restart) }, duration, false},
	{"restart_writes", "writes at restart", func(r *result) float64 { return float64(r.restartWrites) }, func(f float64) string { return strconv.Itoa(int(f)) }, false},
	{"pod_to_pod_ratio", "connections pod to pod, ratio to no proxy", func(r *result) float64 { return r.direct }, ratioText, true},
	{"through_service_ratio", "connections through a Service, ratio to pod to pod without a proxy", func(r *result) float64 { return r.through }, ratioText, true},
	{"pod_to_pod_latency_s", "connect pod to pod", func(r *result) float64 { return seconds(r.directLatency) }, duration, false},
	{"through_latency_s", "connect through a Service", func(r *result) float64 { return seconds(r.thLatency) }, duration, false},
}

// print prints the figures of the named columns during the run, because a run takes long.
func (r *result) print(names ...string) {
	for i := range columns {
		if c := &columns[i]; slices.Contains(names, c.name) {
			fmt.Printf("    %s: %s\n", c.title, cell(*c, r))
		}
	}
}

// writeCSV writes the results to a file.
func writeCSV(path string, results []result) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := csv.NewWriter(f)
	head := []string{"proxy", "mode", "services", "endpoints", "skipped"}
	for _, c := range columns {
		head = append(head, c.name)
	}
	rows := [][]string{head}
	for i := range results {
		r := &results[i]
		row := []string{r.proxy, r.mode, strconv.Itoa(r.services), strconv.Itoa(r.endpoints), r.skipped}
		for _, c := range columns {
			text := ""
			if v := c.value(r); r.skipped == "" && v >= 0 {
				text = strconv.FormatFloat(v, 'g', 6, 64)
			}
			row = append(row, text)
		}
		rows = append(rows, row)
	}
	err = w.WriteAll(rows)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// printTables prints a table for each number of Services and mode: Fairlead, kube-proxy and their
// ratio.
func printTables(out io.Writer, results []result) {
	for len(results) > 0 {
		n := results[0].services
		end := slices.IndexFunc(results, func(r result) bool { return r.services != n })
		if end < 0 {
			end = len(results)
		}
		printSize(out, results[:end])
		results = results[end:]
	}
}

func printSize(out io.Writer, results []result) {
	fmt.Fprintf(out, "%d Services of %d endpoints; a rolling update changes %d endpoints\n\n", results[0].services, results[0].endpoints, results[0].rollSize)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	for len(results) > 0 {
		pair := results[:1]
		if len(results) > 1 && results[1].mode == results[0].mode {
			pair = results[:2]
		}
		results = results[len(pair):]
		fmt.Fprintf(w, "%s", pair[0].mode)
		for i := range pair {
			fmt.Fprintf(w, "\t%s", pair[i].proxy)
		}
		if len(pair) == 2 {
			fmt.Fprint(w, "\tratio")
		}
		fmt.Fprintln(w)
		for _, c := range columns {
			var cells []string
			for i := range pair {
				cells = append(cells, cell(c, &pair[i]))
			}
			if len(pair) == 2 {
				cells = append(cells, compare(c, &pair[0], &pair[1]))
			}
			fmt.Fprintf(w, "  %s\t%s\n", c.title, strings.Join(cells, "\t"))
		}
		for i := range pair {
			if pair[i].skipped != "" {
				line, _, _ := strings.Cut(pair[i].skipped, "\n")
				fmt.Fprintf(w, "  (%s: %s)\n", pair[i].proxy, line)
			}
		}
		fmt.Fprintln(w)
	}
}

func cell(c column, r *result) string {
	if v := c.value(r); r.skipped == "" && v >= 0 {
		return c.text(v)
	}
	return "–"
}

// compare returns by which factor ours is better than peer.
func compare(c column, ours, peer *result) string {
	a, b := c.value(ours), c.value(peer)
	if ours.skipped != "" || peer.skipped != "" || a < 0 || b < 0 {
		return ""
	}
	if c.more {
		a, b = b, a
	}
	if a == 0 {
		if b == 0 {
			return "1.0"
		}
		return "∞"
	}
	return fmt.Sprintf("%.1f", b/a)
}

// machine describes the machine of the measurement.
func machine() string {
	kernel := "an unknown kernel"
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = "Linux " + strings.TrimSpace(string(text))
	}
	return fmt.Sprintf("%d CPUs, %s, %s, %s", runtime.NumCPU(), kernel, runtime.Version(), time.Now().Format(time.DateOnly))
}
