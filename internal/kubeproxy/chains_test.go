package kubeproxy

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// leftBehind is written by kube-proxy, the kubelet, a CNI plugin and Fairlead.
const leftBehind = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-SERVICES - [0:0]
:FAIRLEAD-INPUT - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-ROUTER-INPUT
-A INPUT -j KUBE-FIREWALL
-A INPUT -j FAIRLEAD-INPUT
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BBBBBBBBBBBBBBBB - [0:0]
:KUBE-SVC-lookalike - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-AAAAAAAAAAAAAAAA -s 10.0.0.1/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-BBBBBBBBBBBBBBBB
-A KUBE-SVC-BBBBBBBBBBBBBBBB -j KUBE-SEP-AAAAAAAAAAAAAAAA
COMMIT
`

func tablesOf(t *testing.T, text string) *rulesim.Tables {
	t.Helper()
	f := &rulesim.Tables{Rules: rulesim.New(fwd.IPv4)}
	if err := f.Restore(context.Background(), []byte(text)); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestChains(t *testing.T) {
	ctx := context.Background()
	f := tablesOf(t, leftBehind)
	c, err := findChains(ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	if n, jumps := c.count(); n != 12 || jumps != 5 || len(c.kept) != 0 {
		t.Errorf("found %d chains (%v), %d jumps (%v), kept %v", n, c.names, jumps, c.jumps, c.kept)
	}
	before := f.Save()
	if err := c.remove(ctx); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for line := range strings.Lines(before) {
		ofOthers := false
		for _, name := range []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-ROUTER-INPUT", "FAIRLEAD-INPUT", "KUBE-SVC-lookalike"} {
			ofOthers = ofOthers || strings.Contains(line, name)
		}
		if ofOthers || !strings.Contains(line, "KUBE-") {
			want.WriteString(line)
		}
	}
	if got := f.Save(); got != want.String() {
		t.Errorf("left is\n%s\nwant\n%s", got, want.String())
	}
	again, err := findChains(ctx, f)
	if err != nil || !again.empty() {
		t.Errorf("the second time: %v, %v", again.names, err)
	}
	if err := again.remove(ctx); err != nil {
		t.Error(err)
	}
}

func TestChainsThatOthersUseStay(t *testing.T) {
	ctx := context.Background()
	f := tablesOf(t, strings.Replace(leftBehind, "-A PREROUTING -m", ":CNI-HOSTPORT-SETMARK - [0:0]\n-A CNI-HOSTPORT-SETMARK -j KUBE-SEP-AAAAAAAAAAAAAAAA\n-A PREROUTING -m", 1))
	c, err := findChains(ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	want := "[chain KUBE-SEP-AAAAAAAAAAAAAAAA of table nat (a rule of chain CNI-HOSTPORT-SETMARK jumps to it)" +
		" chain KUBE-MARK-MASQ of table nat (a rule of chain KUBE-SEP-AAAAAAAAAAAAAAAA jumps to it)]"
	if got := fmt.Sprint(c.kept); got != want {
		t.Errorf("kept %s\nwant %s", got, want)
	}
	if err := c.remove(ctx); err != nil {
		t.Fatal(err)
	}
	text := f.Save()
	for _, line := range []string{"-A KUBE-MARK-MASQ -j MARK", "-A KUBE-SEP-AAAAAAAAAAAAAAAA -s 10.0.0.1/32", "-A CNI-HOSTPORT-SETMARK -j KUBE-SEP"} {
		if !strings.Contains(text, line) {
			t.Errorf("%q is gone", line)
		}
	}
	if strings.Contains(text, "KUBE-SVC-B") || strings.Contains(text, "KUBE-POSTROUTING") {
		t.Errorf("left is\n%s", text)
	}
}

func TestManyChainsGoInPieces(t *testing.T) {
	ctx := context.Background()
	var b strings.Builder
	b.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n")
	name := func(i int) string {
		const digits = "ABCDEFGHIJ"
		s := []byte("KUBE-SVC-AAAAAAAAAAAAAAAA")
		for at := len(s) - 1; i > 0; at, i = at-1, i/10 {
			s[at] = digits[i%10]
		}
		return string(s)
	}
	const n = 2500
	for i := range n {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name(i))
	}
	for i := range n {
		fmt.Fprintf(&b, "-A KUBE-SERVICES -p tcp -j %s\n", name(i))
	}
	b.WriteString("-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n")
	f := tablesOf(t, b.String())
	restores := 0
	f.Hook = func([]byte) error { restores++; return nil }
	c, err := findChains(ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.remove(ctx); err != nil {
		t.Fatal(err)
	}
	if text := f.Save(); strings.Contains(text, "KUBE-") {
		t.Error("chains are left")
	}
	if restores != 7 { // the jump, and twice three pieces of 2,501 chains
		t.Errorf("%d restores, want 7", restores)
	}
}
