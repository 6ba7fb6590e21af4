package xtables

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// userland is the output of each save program, with "!" in front if it fails. All three programs of
// a flavour exist.
type userland map[string]string

func (u userland) LookPath(name string) (string, error) {
	base := strings.TrimSuffix(strings.TrimSuffix(name, "-save"), "-restore")
	if _, ok := u[base]; !ok {
		return "", exec.ErrNotFound
	}
	return "/sbin/" + name, nil
}

func (u userland) Run(_ context.Context, stdout io.Writer, path string, args ...string) error {
	if len(args) > 0 && !strings.Contains(path, "-nft") {
		return errors.New("asked for a table")
	}
	text := u[strings.TrimSuffix(strings.TrimPrefix(path, "/sbin/"), "-save")]
	if msg, fails := strings.CutPrefix(text, "!"); fails {
		return errors.New(msg)
	}
	for chunk := range slices.Chunk([]byte(text), 7) { // lines come in pieces
		if _, err := stdout.Write(chunk); err != nil {
			return err
		}
	}
	return nil
}

func TestDetect(t *testing.T) {
	const (
		none   = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
		rules1 = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n"
		rules2 = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT\n"
		hint   = "*filter\nCOMMIT\n*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
		canary = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
		near   = "*nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*mangle\n:KUBE-IPTABLES-HINTS - [0:0]\nCOMMIT\n"
	)
	tests := []struct {
		name string
		u    userland
		want Flavour
		why  string
		err  error
	}{
		{"nothing installed", userland{}, "", "", ErrNotInstalled},
		{"only plain", userland{"iptables": none}, Plain, "without a suffix", nil},
		{"only legacy", userland{"iptables": none, "iptables-legacy": none}, Legacy, "only one", nil},
		{"only nft", userland{"iptables-nft": none}, NFT, "only one", nil},
		{"nothing written", userland{"iptables-nft": none, "iptables-legacy": none}, NFT, "no rules", nil},
		{"hint in nft", userland{"iptables-nft": hint, "iptables-legacy": canary + rules2}, NFT, "KUBE-IPTABLES-HINT", nil},
		{"hint in nft, IPv6", userland{"iptables-nft": none, "ip6tables-nft": canary, "iptables-legacy": rules2}, NFT, "KUBE-KUBELET-CANARY", nil},
		{"hint in legacy", userland{"iptables-nft": rules2, "iptables-legacy": canary}, Legacy, "KUBE-KUBELET-CANARY", nil},
		{"hint in another table or with another name", userland{"iptables-nft": near, "iptables-legacy": near}, NFT, "no rules", nil},
		{"more rules in legacy", userland{"iptables-nft": rules1, "iptables-legacy": rules2}, Legacy, "2 rules", nil},
		{"as many", userland{"iptables-nft": rules1, "iptables-legacy": rules1}, NFT, "1 rules", nil},
		{"IPv6 counts", userland{"iptables-nft": rules1, "iptables-legacy": rules1, "ip6tables-legacy": rules1}, Legacy, "2 rules", nil},
		{"IPv6 cannot be read", userland{"iptables-nft": rules2, "ip6tables-nft": "!no IPv6", "iptables-legacy": rules1}, NFT, "2 rules", nil},
		{"nft cannot be read", userland{"iptables-nft": "!protocol not supported", "iptables-legacy": none}, Legacy, "not supported", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, why, err := Detect(t.Context(), tt.u)
			if got != tt.want || !strings.Contains(why, tt.why) || !errors.Is(err, tt.err) {
				t.Errorf("got %q (%s), %v; want %q (%s), %v", got, why, err, tt.want, tt.why, tt.err)
			}
		})
	}
	_, _, err := Detect(t.Context(), userland{"iptables-nft": "!bad one", "iptables-legacy": "!bad two"})
	if err == nil || !strings.Contains(err.Error(), "bad one") || !strings.Contains(err.Error(), "bad two") {
		t.Errorf("neither can be read: got %v", err)
	}
}
