package tuning

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/host/sysctl"
)

// tree makes a directory with the files.
func tree(t *testing.T, files map[string]string) sysctl.FS {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return sysctl.FS{Root: root}
}

func TestTableSize(t *testing.T) {
	for _, tt := range []struct{ perCore, min, cpus, want int }{
		{32768, 131072, 1, 131072},
		{32768, 131072, 4, 131072},
		{32768, 131072, 8, 262144},
		{32768, 131072, 32, 1048576},
		{32768, 131072, 96, 1048576},
		{32768, 4000000, 96, 4000000},
		{0, 131072, 8, 0},
		{100, 0, 8, 800},
	} {
		if got := TableSize(config.Conntrack{MaxPerCore: tt.perCore, Min: tt.min}, tt.cpus); got != tt.want {
			t.Errorf("%d a core, at least %d, %d CPUs: got %d, want %d", tt.perCore, tt.min, tt.cpus, got, tt.want)
		}
	}
}

func TestConntrack(t *testing.T) {
	const ct = "net/netfilter/nf_conntrack_"
	kernel := map[string]string{
		ct + "max": "65536", ct + "tcp_timeout_established": "432000", ct + "tcp_timeout_close_wait": "60",
		ct + "udp_timeout": "30", ct + "udp_timeout_stream": "120", ct + "tcp_be_liberal": "0",
	}
	defaults := config.Default().Conntrack
	all := defaults
	all.UDPTimeout, all.UDPStreamTimeout, all.TCPBeLiberal = 10*time.Second, 90*time.Second+time.Millisecond, true
	established := Change{ct + "tcp_timeout_established", 86400, 432000}
	closeWait := Change{ct + "tcp_timeout_close_wait", 3600, 60}
	for _, tt := range []struct {
		name     string
		config   config.Conntrack
		is       map[string]string
		hashSize string
		want     []Change
	}{
		{"defaults", defaults, nil, "16384", []Change{{ct + "max", 131072, 65536}, {buckets, 32768, 16384}, established, closeWait}},
		{"an administrator wants more", defaults, map[string]string{ct + "max": "2000000"}, "500000", []Change{established, closeWait}},
		{"buckets follow what an administrator wants", defaults, map[string]string{ct + "max": "2000000"}, "16384", []Change{{buckets, 500000, 16384}, established, closeWait}},
		{"nothing asked for", config.Conntrack{Min: 131072}, nil, "1", nil},
		{"everything asked for", all, map[string]string{ct + "max": "131072"}, "32768",
			[]Change{established, closeWait, {ct + "udp_timeout", 10, 30}, {ct + "udp_timeout_stream", 90, 120}, {ct + "tcp_be_liberal", 1, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := make(map[string]string)
			for _, m := range []map[string]string{kernel, tt.is} {
				for name, value := range m {
					files[name] = value
				}
			}
			k := Kernel{Sysctl: tree(t, files), Sys: tree(t, map[string]string{buckets: tt.hashSize}), CPUs: 2}
			got, err := k.Conntrack(tt.config)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			for _, c := range got {
				in := k.Sysctl
				if c.Name == buckets {
					in = k.Sys
				}
				if is, err := in.Int(c.Name); err != nil || is != c.Value {
					t.Errorf("%s is %d (%v), want %d", c.Name, is, err, c.Value)
				}
			}
			if again, err := k.Conntrack(tt.config); len(again) > 0 || err != nil {
				t.Errorf("the second time: changed %v, error %v", again, err)
			}
		})
	}
}

func TestLoaded(t *testing.T) {
	if !(Kernel{Sysctl: tree(t, map[string]string{tableSize: "65536"})}).Loaded() {
		t.Error("not loaded")
	}
	if (Kernel{Sysctl: tree(t, nil)}).Loaded() {
		t.Error("loaded without a parameter")
	}
}

func TestConntrackFailuresStopNothing(t *testing.T) {
	k := Kernel{
		Sysctl: tree(t, map[string]string{"net/netfilter/nf_conntrack_max": "many", "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "60"}),
		Sys:    tree(t, nil), CPUs: 2,
	}
	got, err := k.Conntrack(config.Default().Conntrack)
	if want := []Change{{"net/netfilter/nf_conntrack_tcp_timeout_close_wait", 3600, 60}}; !cmp.Equal(got, want) {
		t.Errorf("changed %v, want %v", got, want)
	}
	if err != nil && strings.Contains(err.Error(), "now 0") {
		t.Errorf("error %v says a value that was not read", err)
	}
	for _, want := range []string{"nf_conntrack_max to 131072", "--conntrack-max-per-core", "nf_conntrack_tcp_timeout_established to 86400: the kernel has no such parameter"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-3,8": 5, "0,2,4-5": 4, "": 0, "x": 0, "3-1": 0} {
		if got := countCPUs(list); got != want {
			t.Errorf("%q: got %d, want %d", list, got, want)
		}
	}
}
