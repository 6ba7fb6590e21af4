package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// othersRules is what the kubelet, kube-router and people have in iptables, which no clean-up may
// touch.
const othersRules = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -j KUBE-ROUTER-INPUT
COMMIT
*nat
:PORTMAP - [0:0]
-A PREROUTING -m comment --comment "someone else's" -j PORTMAP
COMMIT
`

// kubeProxys matches kube-proxy's iptables chains except KUBE-FIREWALL, which it shares with
// the kubelet.
var kubeProxys = regexp.MustCompile(`KUBE-(SERVICES|EXTERNAL|NODEPORTS|NODE-PORT|FORWARD|PROXY|POSTROUTING|MARK-MASQ|LOAD|SOURCE|IPVS|SVC|SVL|EXT|FW|SEP)`)

// TestLeftovers runs kube-proxy in each mode, kills it, and checks that "fairlead cleanup
// --kube-proxy" removes everything that it left, in both families, and nothing of other programs.
func TestLeftovers(t *testing.T) {
	lab.RequireKernel(t)
	ours, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	peer, err := apiserver.Binary("kube-proxy")
	must(t, err)
	for _, tt := range []struct {
		name, mode, userland string
		needs                []hosttest.Feature
	}{
		{"iptables, nft userland", "iptables", "nft", []hosttest.Feature{hosttest.NFTables}},
		{"iptables, legacy userland", "iptables", "legacy", nil},
		{"nftables", "nftables", "nft", []hosttest.Feature{hosttest.NFTables}},
		{"ipvs", "ipvs", "legacy", []hosttest.Feature{hosttest.IPVS, hosttest.Dummy}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hosttest.Need(t, tt.needs...)
			c := &cluster{lab: lab.ForTest(t, 1, 2), hosts: map[string]lab.Host{}, dialers: map[string]*probe.Dialer{}}
			c.addHosts(t)
			c.startAPI(t)
			node := c.lab.Nodes[0]
			svc := c.service(t, "web", balanced(70, corev1.ServiceExternalTrafficPolicyCluster))
			c.endpoints(t, svc, ready("node1-p1"))
			c.service(t, "empty", balanced(71, corev1.ServiceExternalTrafficPolicyLocal))

			for _, tool := range []string{"iptables-", "ip6tables-"} {
				restore := node.Command(t.Context(), tool+tt.userland+"-restore", "--noflush")
				restore.Stdin = strings.NewReader(othersRules)
				if out, err := restore.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", tool, err, out)
				}
			}
			clean := stateOf(t, node, tt.userland)

			kubeconfig, err := c.api.Kubeconfig(apiserver.Daemon)
			must(t, err)
			d, err := daemon.Start(node, "env", "PATH="+userlandPath(t, tt.userland), peer, "--proxy-mode="+tt.mode, "--kubeconfig="+kubeconfig,
				"--hostname-override="+node.Label, "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
				"--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String())
			must(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			for f := range families {
				to := c.target(svc, path{to: "cluster"}, f).Briefly()
				if _, err := c.await(ctx, "node1-p2", to, func(r probe.Result) bool { return r.Verdict == probe.Answered }); err != nil {
					check(t, d.Kill())
					t.Fatalf("kube-proxy does not serve: %v\n%s", err, d.Log())
				}
			}
			check(t, d.Kill())
			dirty := stateOf(t, node, tt.userland)
			if dirty == clean {
				t.Fatal("kube-proxy has left nothing")
			}

			said, err := node.Run(t.Context(), ours, "cleanup", "--kube-proxy", "--dry-run")
			must(t, err)
			if !strings.Contains(said, "would remove kube-proxy's") {
				t.Errorf("a dry run says\n%s", said)
			}
			if now := stateOf(t, node, tt.userland); now != dirty {
				t.Errorf("a dry run changed\n%s\nto\n%s", dirty, now)
			}
			said, err = node.Run(t.Context(), ours, "cleanup", "--kube-proxy")
			must(t, err)
			t.Logf("cleanup says\n%s", said)
			left := stateOf(t, node, tt.userland)
			if m := kubeProxys.FindString(left); m != "" || strings.Contains(left, "kube-proxy") || strings.Contains(left, "kube-ipvs0") {
				t.Errorf("%s is left:\n%s", m, left)
			}
			for line := range strings.Lines(clean) {
				if !strings.Contains(left, line) {
					t.Errorf("%q of somebody else is gone", line)
				}
			}
			said, err = node.Run(t.Context(), ours, "cleanup", "--kube-proxy")
			must(t, err)
			if !strings.Contains(said, "the kernel has nothing of kube-proxy") {
				t.Errorf("the second time it says\n%s", said)
			}
		})
	}
}

// userlandPath is a PATH on which iptables is that of a userland.
func userlandPath(t *testing.T, userland string) string {
	t.Helper()
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			program, err := exec.LookPath(family + "-" + userland + suffix)
			must(t, err)
			must(t, os.Symlink(program, filepath.Join(dir, family+suffix)))
		}
	}
	return dir + ":" + os.Getenv("PATH")
}

// stateOf returns everything that a proxy writes to a node's kernel, as text without counters.
func stateOf(t *testing.T, node *lab.Node, userland string) string {
	t.Helper()
	var b strings.Builder
	commands := [][]string{
		{"iptables-" + userland + "-save"}, {"ip6tables-" + userland + "-save"}, {"ip", "-brief", "address"},
		{"cat", "/proc/net/ip_vs"},
	}
	if userland == "nft" {
		commands = append(commands, []string{"nft", "list", "tables"})
	}
	for _, cmd := range commands {
		out, err := node.Run(t.Context(), cmd[0], cmd[1:]...)
		if err != nil && cmd[0] != "cat" { // the kernel may have no IPVS
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "#") {
				b.WriteString(counters.ReplaceAllString(line, "[0:0]"))
			}
		}
	}
	return b.String()
}

// counters are those of iptables-save.
var counters = regexp.MustCompile(`\[\d+:\d+\]`)
