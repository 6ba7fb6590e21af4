package e2e

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// inImage runs a command as a container of the manifests' DaemonSet would: in the image's file
// system, which can only be read, with the capabilities of the base and no way to others, and with
// /proc/sys read-only.
const inImage = `set -e
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cp "$OBJECTS" "$root/tmp/objects.yaml"
exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin setpriv --bounding-set=-all,+net_admin,+net_raw,+sys_chroot --no-new-privs chroot "$root" "$@"
`

// imageObjects is one Service of each family with an endpoint on the first node.
const imageObjects = `apiVersion: v1
kind: Node
metadata: {name: node1}
status: {addresses: [{type: InternalIP, address: 192.168.50.11}, {type: InternalIP, address: "fd00:192:168:50::b"}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: default, name: web}
spec: {clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80, "fd00:10:96::80"], ipFamilies: [IPv4, IPv6], ports: [{protocol: TCP, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: default, name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", protocol: TCP, port: 8080}]
endpoints: [{addresses: [POD4], nodeName: node1}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: default, name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: "", protocol: TCP, port: 8080}]
endpoints: [{addresses: ["POD6"], nodeName: node1}]
`

// TestImage makes the image's root file system and runs the daemon in it, with both userlands of
// iptables and with nf_tables.
func TestImage(t *testing.T) {
	lab.RequireKernel(t)
	hosttest.Need(t, hosttest.NFTables)
	binary, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	root := filepath.Join(t.TempDir(), "root")
	l := lab.ForTest(t, 1, 2)
	node := l.Nodes[0]
	makeRootfs(t, root, binary)

	pods := node.Pods
	objects := filepath.Join(t.TempDir(), "objects.yaml")
	text := strings.NewReplacer("POD4", pods[0].Addrs[0].String(), "POD6", pods[0].Addrs[1].String()).Replace(imageObjects)
	must(t, os.WriteFile(objects, []byte(text), 0o644))
	server, err := probe.Serve(pods[0], pods[0].Label, pods[0].Addrs[:], []string{"tcp"}, podPorts)
	must(t, err)
	t.Cleanup(func() { check(t, server.Close()) })
	dialer := probe.NewDialer(pods[1].Host)

	run := func(args ...string) []string {
		return append([]string{"OBJECTS=" + objects, "unshare", "--mount", "sh", "-c", inImage, "sh", root}, args...)
	}
	for _, tt := range []struct{ name, mode, userland, command string }{
		{"iptables, nft", "iptables", "nft", "/usr/local/bin/fairlead"},
		{"iptables, legacy", "iptables", "legacy", "/usr/local/bin/fairlead"},
		{"nftables, by kube-proxy's name", "nftables", "nft", "/usr/local/bin/kube-proxy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.mode == "iptables" {
				must(t, daemon.Hint(t.Context(), node, tt.userland))
				defer func() {
					for _, tool := range []string{"iptables-", "ip6tables-"} {
						_, err := node.Run(context.WithoutCancel(t.Context()), tool+tt.userland, "-w", "-t", "mangle", "-X", "KUBE-IPTABLES-HINT")
						check(t, err)
					}
				}()
			}
			d, err := daemon.Start(node, "env", run(tt.command, "--proxy-mode="+tt.mode, "--objects=/tmp/objects.yaml", "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
				"--iptables-localhost-nodeports=false", "--nodeport-addresses=primary", "--oom-score-adj=0", "--conntrack-max-per-core=0",
				"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")...)
			must(t, err)
			defer func() { check(t, d.Stop()) }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := d.AwaitLog(ctx, "msg=synced"); err != nil {
				t.Fatalf("%v\n%s", err, d.Log())
			}
			for _, dst := range []string{"10.96.0.80:80", "[fd00:10:96::80]:80"} {
				if r := dialer.Dial(ctx, probe.Target{Proto: "tcp", Dst: netip.MustParseAddrPort(dst)}); r.Server != pods[0].Label {
					t.Errorf("%s: %s\n%s", dst, r, d.Log())
				}
			}
			if strings.Contains(d.Log(), "level=WARN") || strings.Contains(d.Log(), "level=ERROR") {
				t.Errorf("the log has warnings:\n%s", d.Log())
			}
		})
		if out, err := node.Run(t.Context(), "env", run("/usr/local/bin/fairlead", "cleanup")...); err != nil {
			t.Errorf("clean up: %v\n%s", err, out)
		}
	}
}

// makeRootfs runs hack/image/rootfs.
func makeRootfs(t *testing.T, root, binary string) {
	t.Helper()
	script, err := filepath.Abs("../hack/image/rootfs")
	must(t, err)
	if out, err := exec.CommandContext(t.Context(), script, root, binary).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
