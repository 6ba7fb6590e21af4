package config

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	tests := []struct {
		name, old, next string
		live, restart   []string
	}{
		{name: "nothing"},
		{name: "live", old: "", next: "-v=4 --cluster-cidr=10.0.0.0/8 --masquerade-all --iptables-sync-period=9s --iptables-min-sync-period=2s --oom-score-adj=0 --feature-gates=AllowServiceExternalIPs=false --bind-address=10.0.0.1",
			live: []string{`--bind-address from "0.0.0.0" to "10.0.0.1"`, `--cluster-cidr from "" to "10.0.0.0/8"`, `--masquerade-all from "false" to "true"`,
				`--iptables-sync-period from "30s" to "9s"`, `--iptables-min-sync-period from "1s" to "2s"`, `--feature-gates from "" to "AllowServiceExternalIPs=false"`,
				`--oom-score-adj from "-999" to "0"`, `--v from "0" to "4"`}},
		{name: "restart", next: "--kubeconfig=k --iptables-masquerade-bit=7 --conntrack-min=5 --healthz-bind-address=10.0.0.1 --logging-format=json --hostname-override=other",
			restart: []string{`--kubeconfig from "" to "k"`, `--hostname-override from "" to "other"`, `--iptables-masquerade-bit from "14" to "7"`, `--conntrack-min from "131072" to "5"`,
				`--healthz-bind-address from "0.0.0.0:10256" to "10.0.0.1:10256"`, `--logging-format from "text" to "json"`}},
		{name: "what does not matter", old: "--detect-local-mode=NodeCIDR", next: "--detect-local-mode=NodeCIDR --cluster-cidr=10.0.0.0/8 --ipvs-sync-period=9s --ipvs-scheduler=mh --vmodule=a=1 --log-flush-frequency=1s --enable-dsr"},
		{name: "mode takes what hangs on it", next: "--mode=nftables --nodeport-addresses=10.0.0.0/8 -v=1", live: []string{`--v from "0" to "1"`},
			restart: []string{`--mode from "iptables" to "nftables"`, `--nodeport-addresses from "" to "10.0.0.0/8"`}},
		{name: "node ports without loopback", old: "--nodeport-addresses=primary", next: "--nodeport-addresses=10.0.0.0/8", live: []string{`--nodeport-addresses from "primary" to "10.0.0.0/8"`}},
		{name: "node ports begin on loopback", old: "--nodeport-addresses=primary", next: "", restart: []string{`--nodeport-addresses from "primary" to ""`}},
		{name: "a forwarder is needed", old: "--mode=nftables", next: "--mode=nftables --nodeport-addresses=localhost", restart: []string{`--nodeport-addresses from "" to "localhost"`}},
		{name: "detector by interface", next: "--detect-local-mode=BridgeInterface --pod-bridge-interface=br0",
			live: []string{`--detect-local-mode from "ClusterCIDR" to "BridgeInterface"`, `--pod-bridge-interface from "" to "br0"`}},
		{name: "detector that waits for the Node", next: "--detect-local-mode=NodeCIDR", restart: []string{`--detect-local-mode from "ClusterCIDR" to "NodeCIDR"`}},
		{name: "gate of the conversion", next: "--feature-gates=LoadBalancerIPMode=false", restart: []string{`--feature-gates from "" to "LoadBalancerIPMode=false"`}},
		{name: "bind address moves the servers", next: "--bind-address=::", restart: []string{`--bind-address from "0.0.0.0" to "::"`,
			`--healthz-bind-address from "0.0.0.0:10256" to "[::]:10256"`, `--metrics-bind-address from "127.0.0.1:10249" to "[::1]:10249"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			old, next := parse(t, tt.old), parse(t, tt.next)
			live, restart := Diff(old, next)
			if d := cmp.Diff(tt.live, texts(live)); d != "" {
				t.Errorf("live: %s", d)
			}
			if d := cmp.Diff(tt.restart, texts(restart)); d != "" {
				t.Errorf("restart: %s", d)
			}
			applied := old.Apply(next)
			again, remains := Diff(applied, next)
			if d := cmp.Diff(texts(restart), texts(append(again, remains...))); d != "" {
				t.Errorf("after Apply: %s", d)
			}
			if _, changed := Diff(old, applied); len(changed) > 0 {
				t.Errorf("Apply applies %v", changed)
			}
			if len(restart) == 0 && tt.name != "what does not matter" {
				if d := cmp.Diff(next, applied, compare); d != "" {
					t.Errorf("after Apply: %s", d)
				}
			}
		})
	}
}

func texts(changes []Change) []string {
	var out []string
	for _, ch := range changes {
		out = append(out, fmt.Sprintf("%s from %q to %q", ch.Name, ch.Old, ch.New))
	}
	return out
}

// TestSettingsCoverConfig proves that every field of Config has a setting, so that Diff and Apply
// cover it.
func TestSettingsCoverConfig(t *testing.T) {
	derived := []string{"NodeName", "MasqueradeAll", "MasqueradeBit", "SyncPeriod", "MinSyncPeriod", "Gates", "UnknownGates", "LogJSON", "NodeShared"}
	bound := make(map[string]bool)
	usual := leaves(reflect.ValueOf(Default()).Elem(), "")
	// Changing each setting must change each field.
	others := map[string]string{"mode": "ipvs", "detect-local-mode": "NodeCIDR", "bind-address": "10.0.0.9", "healthz-bind-address": "10.0.0.9", "metrics-bind-address": "10.0.0.9",
		"cluster-cidr": "10.0.0.0/8", "ipvs-exclude-cidrs": "10.0.0.0/8", "nodeport-addresses": "primary", "ipvs-vip": "mark", "masquerade-source": "node", "logging-format": "json", "vmodule": "a=1", "feature-gates": "A=true"}
	for i := range Default().settings {
		c := Default()
		s := c.settings[i]
		text, found := others[s.flag]
		if !found {
			text = map[string]string{boolean: fmt.Sprint(s.get() != "true"), "duration": "77s", "number": "7", "bit": "7", "level": "7", "port": "7", "size": "7"}[s.typ]
		}
		if text == "" {
			text = "77"
		}
		if err := s.assign(text, byFlag); err != nil {
			t.Fatalf("%s%s: %v", s.flag, s.field, err)
		}
		if s.get() == s.def {
			t.Errorf("--%s %s does not change anything", s.flag, s.field)
		}
		for name, leaf := range leaves(reflect.ValueOf(c).Elem(), "") {
			if !reflect.DeepEqual(leaf, usual[name]) {
				bound[name] = true
			}
		}
	}
	for name := range usual {
		root, _, _ := strings.Cut(name, ".")
		if !bound[name] && !slices.Contains(derived, root) && !strings.HasPrefix(name, "Gates") {
			t.Errorf("%s has no setting", name)
		}
	}
}

// leaves returns the exported fields of a struct and of its structs.
func leaves(v reflect.Value, path string) map[string]any {
	out := make(map[string]any)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case !f.IsExported():
		case f.Type == reflect.TypeFor[IPVS]() || f.Type == reflect.TypeFor[Conntrack]():
			maps.Copy(out, leaves(v.Field(i), path+f.Name+"."))
		default:
			out[path+f.Name] = v.Field(i).Interface()
		}
	}
	return out
}

// TestConfigzIsTheVersionedObject compares with the names in the response of kube-proxy 1.36.3, and
// reads the response as a file.
func TestConfigzIsTheVersionedObject(t *testing.T) {
	const file = "mode: nftables\nnftables: {masqueradeAll: true, syncPeriod: 7s}\nclusterCIDR: 10.0.0.0/8\nconntrack: {maxPerCore: 0}\n"
	c, err := parseFile(t, file)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(c.Configz())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	object := got["kubeproxy.config.k8s.io"]
	if len(got) != 1 || object == nil {
		t.Fatalf("want one key, the name of the API group: %s", data)
	}
	for _, want := range []string{
		`"apiVersion":"kubeproxy.config.k8s.io/v1alpha1"`, `"kind":"KubeProxyConfiguration"`, `"mode":"nftables"`, `"clusterCIDR":"10.0.0.0/8"`, `"configSyncPeriod":"15m0s"`,
		`"conntrack":{"maxPerCore":0,"min":131072,"tcpEstablishedTimeout":"24h0m0s","tcpCloseWaitTimeout":"1h0m0s",`,
		`"nftables":{"masqueradeBit":14,"masqueradeAll":true,"syncPeriod":"7s","minSyncPeriod":"1s"}`, `"oomScoreAdj":-999`, `"healthzBindAddress":"0.0.0.0:10256"`,
	} {
		if !strings.Contains(string(object), want) {
			t.Errorf("no %s in %s", want, object)
		}
	}
	again, err := parseFile(t, string(object))
	if err != nil {
		t.Fatal(err)
	}
	again.ConfigFile = c.ConfigFile
	if d := cmp.Diff(c, again, compare); d != "" || len(again.Notes()) > 0 {
		t.Errorf("read as a file (-want +got), notes %q:\n%s", again.Notes(), d)
	}
}

func TestFlagz(t *testing.T) {
	c, err := parseFile(t, "mode: nftables\nnftables: {masqueradeAll: true, syncPeriod: 7s}\n", "--master=https://user:secret@host")
	if err != nil {
		t.Fatal(err)
	}
	flagz := c.Flagz()
	for name, want := range map[string]string{"master": "https://user:xxxxx@host", "mode": "nftables", "masquerade-all": "true", "iptables-sync-period": "7s", "ipvs-scheduler": "rr", "v": "0"} {
		if flagz[name] != want {
			t.Errorf("--%s is %q, want %q", name, flagz[name], want)
		}
	}
	data, err := json.Marshal(c.Configz())
	if err != nil || strings.Contains(string(data)+fmt.Sprint(flagz), "secret") {
		t.Errorf("a secret is shown, or %v", err)
	}
}

// TestWatch proves that all usual ways to change a file are noticed.
func TestWatch(t *testing.T) {
	tests := []struct {
		name string
		// prepare creates the file in a directory and returns its path; change changes its content.
		prepare, change func(t *testing.T, dir, text string) string
	}{
		{"written in place", plain, plain},
		{"replaced by a rename", plain, func(t *testing.T, dir, text string) string {
			must(t, os.WriteFile(filepath.Join(dir, "new"), []byte(text), 0o600))
			must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "config.conf")))
			return ""
		}},
		{"removed and made again", plain, func(t *testing.T, dir, text string) string {
			must(t, os.Remove(filepath.Join(dir, "config.conf")))
			return plain(t, dir, text)
		}},
		{"ConfigMap", configMap, configMap},
		{"link to another directory", func(t *testing.T, dir, text string) string {
			must(t, os.Mkdir(filepath.Join(dir, "far"), 0o700))
			plain(t, filepath.Join(dir, "far"), text)
			must(t, os.Symlink("far/config.conf", filepath.Join(dir, "config.conf")))
			return filepath.Join(dir, "config.conf")
		}, func(t *testing.T, dir, text string) string { return plain(t, filepath.Join(dir, "far"), text) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := tt.prepare(t, dir, head+"oomScoreAdj: 1\n")
			c, err := Parse([]string{"--config", path, "--hostname-override=n1", "-v=3"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			type yielded struct {
				c   *Config
				err error
			}
			out, done := make(chan yielded, 100), make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { done <- c.Watch(ctx, func(c *Config, err error) { out <- yielded{c, err} }) }()
			// Twice, because a watch may be lost with the file that it watched. There may be errors
			// first if the file is read between two steps of a change.
			for n := 2; n < 4; n++ {
				tt.change(t, dir, fmt.Sprintf("%soomScoreAdj: %d\n", head, n))
				for {
					y := <-out
					if y.err == nil && y.c.OOMScoreAdj == n && y.c.Verbosity == 3 {
						break
					}
				}
			}
			tt.change(t, dir, head+"oomScoreAdj: 5000\n")
			for {
				if y := <-out; y.err != nil && strings.Contains(y.err.Error(), "oomScoreAdj") {
					break
				}
			}
			tt.change(t, dir, head+"oomScoreAdj: 5000\n") // the same content again is not reported
			tt.change(t, dir, head+"oomScoreAdj: 4\n")
			for {
				y := <-out
				if y.err != nil && strings.Contains(y.err.Error(), "oomScoreAdj") {
					t.Errorf("reported twice: %v", y.err)
				}
				if y.err == nil && y.c.OOMScoreAdj == 4 {
					break
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	if err := Default().Watch(t.Context(), nil); err != nil {
		t.Errorf("without a file: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func plain(t *testing.T, dir, text string) string {
	t.Helper()
	path := filepath.Join(dir, "config.conf")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// configMap updates a volume as the kubelet does: a new directory, and one rename of a symbolic
// link to it.
func configMap(t *testing.T, dir, text string) string {
	t.Helper()
	data, err := os.MkdirTemp(dir, "..2026")
	must(t, err)
	plain(t, data, text)
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(t, os.Symlink(filepath.Base(data), filepath.Join(dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	path := filepath.Join(dir, "config.conf")
	if old == "" {
		must(t, os.Symlink("..data/config.conf", path))
	} else {
		must(t, os.RemoveAll(filepath.Join(dir, old)))
	}
	return path
}
