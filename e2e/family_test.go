package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// failing makes a directory for PATH with a program that fails to read rules of table filter as
// long as a file exists, and returns both paths. Other tables are read to detect the node's
// userland.
func failing(t *testing.T, program string) (path, broken string) {
	t.Helper()
	real, err := exec.LookPath(program)
	must(t, err)
	dir := t.TempDir()
	broken = filepath.Join(dir, "broken")
	must(t, os.WriteFile(broken, nil, 0o644))
	script := fmt.Sprintf("#!/bin/sh\n[ -e %s ] && [ \"$*\" = \"-t filter\" ] && { echo made to fail >&2; exit 1; }\nexec %s \"$@\"\n", broken, real)
	must(t, os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755))
	return dir + ":" + os.Getenv("PATH"), broken
}

// testUnreadFamily changes from mode nftables to mode iptables while the rules of one family cannot
// be read. The other family switches. The unreadable family keeps its old dataplane, which still
// works; route_localnet stays 0 without the rules that protect it, and the health server names the
// waiting family. It switches once it can be read.
func (s *startup) testUnreadFamily(t *testing.T) {
	for f, program := range []string{"iptables-nft-save", "ip6tables-nft-save"} {
		t.Run(families[f], func(t *testing.T) {
			other := 1 - f
			_, err := s.node.Run(t.Context(), s.binary, "cleanup")
			must(t, err)
			_, err = s.node.Run(t.Context(), "sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=0")
			must(t, err)
			old := s.run(t, "--proxy-mode=nftables")
			s.serves(t, old, true)
			must(t, old.Stop())

			path, broken := failing(t, program)
			args := append([]string{"PATH=" + path, s.binary}, s.args...)
			d, err := daemon.Start(s.node, "env", append(args, "--proxy-mode=iptables", "--iptables-sync-period=3s", "--nodeport-addresses=all")...)
			must(t, err)
			defer func() { check(t, d.Kill()) }()
			said(t, d, fmt.Sprintf(`msg="removed the table of mode nftables" family=%s`, families[other]))
			s.awaitHealth(t, d, "/readyz", http.StatusServiceUnavailable, fmt.Sprintf(`"%s":{"written":false,"verified":false}`, families[f]),
				fmt.Sprintf(`"%s":{"written":true,"verified":true}`, families[other]))
			s.awaitHealth(t, d, "/healthz", http.StatusServiceUnavailable)
			for i, family := range s.status(t).Status {
				if healthy := i != families[f]; family.Healthy != healthy {
					t.Errorf("/healthz says of %s that it is healthy: %v", i, family.Healthy)
				}
			}
			if text := d.Log(); strings.Contains(text, `msg="removed the table of mode nftables" family=`+families[f]) {
				t.Errorf("the old dataplane of %s is gone:\n%s", families[f], text)
			}
			tables, err := s.node.Run(t.Context(), "nft", "list", "tables")
			must(t, err)
			for i, table := range []string{"table ip fairlead\n", "table ip6 fairlead\n"} {
				if there := strings.Contains(tables, table); there != (i == f) {
					t.Errorf("%q is there: %v\n%s", table, there, tables)
				}
			}
			localnet, err := s.node.Run(t.Context(), "sysctl", "-n", "net.ipv4.conf.all.route_localnet")
			must(t, err)
			if want := []string{"0", "1"}[f]; strings.TrimSpace(localnet) != want {
				t.Errorf("route_localnet is %s, want %s", localnet, want)
			}
			s.serves(t, d, true) // one family by the new rules, the other by the old ones
			// Changes reach the family that works.
			s.endpoints(t, s.svc, ready("node1-p2"))
			s.servedBy(t, d, "node1-p1", "node1-p2", other)

			must(t, os.Remove(broken))
			said(t, d, fmt.Sprintf(`msg="sync works again" family=%s`, families[f]))
			said(t, d, fmt.Sprintf(`msg="removed the table of mode nftables" family=%s`, families[f]))
			s.awaitHealth(t, d, "/readyz", http.StatusOK)
			s.awaitHealth(t, d, "/healthz", http.StatusOK)
			s.servedBy(t, d, "node1-p1", "node1-p2", f)
			s.endpoints(t, s.svc, ready("node1-p1"))
			s.serves(t, d, true)
			must(t, d.Stop())
		})
	}
}

// servedBy waits until the Service is served by that pod in one family.
func (s *startup) servedBy(t *testing.T, d *daemon.Daemon, from, pod string, family int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	to := s.target(s.svc, path{to: "cluster"}, family).Briefly()
	if _, err := s.await(ctx, from, to, func(r probe.Result) bool { return r.Server == pod }); err != nil {
		t.Fatalf("%v, want %s\n%s", err, pod, d.Log())
	}
}

// awaitHealth polls the health server until it returns this code, and checks parts of the body.
func (s *startup) awaitHealth(t *testing.T, d *daemon.Daemon, path string, code int, parts ...string) {
	t.Helper()
	server := netip.MustParseAddrPort("127.0.0.1:10256")
	for end := time.Now().Add(hosttest.Patience); ; time.Sleep(20 * time.Millisecond) {
		r, err := fetch(t.Context(), s.node.Host, server, path, "")
		right := err == nil && r.code == code
		for _, p := range parts {
			right = right && strings.Contains(string(r.body), p)
		}
		if right {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v, %d %s; want %d and %q\n%s", path, err, r.code, r.body, code, parts, d.Log())
		}
	}
}

// status is the status of the families in /healthz.
func (s *startup) status(t *testing.T) (out struct {
	Status map[string]struct{ Healthy bool }
}) {
	t.Helper()
	_, body := get(t, s.node.Host, netip.MustParseAddrPort("127.0.0.1:10256"), "/healthz")
	must(t, json.Unmarshal([]byte(body), &out))
	return out
}
