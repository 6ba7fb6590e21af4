package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/e2e/cluster"
)

// What is run without -focus and -skip: the tests of the network, except those of other components,
// those that need a cloud or a route to the Internet, and those that stop nodes.
const (
	defaultFocus = `\[sig-network\]`
	defaultSkip  = `\[Serial\]|\[Disruptive\]|\[Feature:(NetworkPolicy|Ingress|SCTPConnectivity|KubeProxyDaemonSet.*|KubeProxyNFAcct|` +
		`Networking-Performance|Networking-IPv4|Networking-IPv6|Networking-DNS|PerformanceDNS)\]`
)

// runTests runs upstream's test binary in parallel processes on the lab's client, which is outside
// of the nodes' network, and reads its report.
func (o options) runTests(ctx context.Context, c *cluster.Cluster, tools string) (results, error) {
	config, err := c.AdminConfig()
	if err != nil {
		return results{}, err
	}
	report, err := filepath.Abs(o.report)
	if err != nil {
		return results{}, err
	}
	log, err := os.Create(filepath.Join(report, "e2e.log"))
	if err != nil {
		return results{}, err
	}
	defer log.Close()
	focus := o.focus
	if focus == "" {
		focus = defaultFocus
	}
	cmd := c.Lab.Client.Command(ctx, filepath.Join(tools, "ginkgo"), "run", "--no-color", "--timeout=3h",
		fmt.Sprintf("--procs=%d", o.procs), "--focus="+focus, "--skip="+o.skip, "--output-dir="+report,
		"--json-report=conformance.json", "--junit-report=junit.xml", filepath.Join(tools, "e2e.test"), "--",
		"--kubeconfig="+config, "--kubectl-path="+filepath.Join(tools, "kubectl"), "--provider=skeleton", fmt.Sprintf("--num-nodes=%d", o.nodes),
		"--dump-logs-on-failure=false", "--disable-log-dump", "--prepull-images=false", "--report-dir="+report)
	cmd.Stdout, cmd.Stderr = log, log
	// Ginkgo ends its processes when it is interrupted. If it were killed, they would go on.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	failure := cmd.Run()
	r, err := readResults(filepath.Join(report, "conformance.json"))
	// An exit code says no more than the report: that tests failed.
	if exit := (*exec.ExitError)(nil); err == nil && failure != nil && !errors.As(failure, &exit) {
		err = failure
	}
	if err != nil {
		end, _ := os.ReadFile(log.Name())
		return results{}, fmt.Errorf("run tests: %w: %w\n%s", failure, err, end[max(0, len(end)-4000):])
	}
	return r, nil
}

// results are what came of a run.
type results struct {
	passed, failed, skipped []spec
	// expected are failures that exceptions.txt names.
	expected []spec
	// date is when the run began, and duration the whole run's.
	date     time.Time
	duration time.Duration
}

// spec is one test; reason says why it failed or was skipped.
type spec struct{ name, reason string }

// readResults reads ginkgo's JSON report. Tests that the flags left out are not in the results;
// those that skipped themselves are, with their reason.
func readResults(path string) (results, error) {
	var reports []struct {
		StartTime   time.Time
		RunTime     time.Duration
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			Failure                 struct{ Message string }
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return results{}, err
	}
	if err := json.Unmarshal(content, &reports); err != nil {
		return results{}, fmt.Errorf("read %s: %w", path, err)
	}
	var r results
	for _, report := range reports {
		r.date = report.StartTime
		r.duration += report.RunTime
		for _, s := range report.SpecReports {
			t := spec{
				name:   strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " "),
				reason: firstLine(s.Failure.Message),
			}
			switch {
			case s.State == "passed" && s.LeafNodeType == "It":
				r.passed = append(r.passed, t)
			case s.State == "skipped" && t.reason != "":
				r.skipped = append(r.skipped, t)
			case s.State != "passed" && s.State != "skipped" && s.State != "pending":
				r.failed = append(r.failed, t)
			}
		}
	}
	if len(r.passed)+len(r.failed) == 0 {
		return results{}, fmt.Errorf("%s: no test ran", path)
	}
	return r, nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
