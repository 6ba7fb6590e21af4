package archtest

// room is what one package, or a tree of packages, may import besides the standard library.
type room struct {
	// path is relative to the module; "/..." at its end includes all packages below.
	path string
	// inside lists packages of the module, in the notation of path; packages below the same room
	// are always allowed.
	inside []string
	// outside lists other modules by the beginning of their path.
	outside []string
	// effects allows packages of the standard library that reach out of the process.
	effects []string
	// test says that the package supports tests and is imported by tests alone.
	test bool
}

// pure are the packages that hold no logger, clock, context or goroutine.
var pure = []string{"internal/fwd", "internal/cluster", "internal/compile", "internal/delta"}

// impure are the packages of the standard library that pure packages do not import.
var impure = []string{"context", "log", "log/slog", "os", "sync", "sync/atomic", "time", "syscall", "math/rand", "math/rand/v2", "io/fs"}

// effects are the packages of the standard library that only rooms that name them may import.
var effects = []string{"os/exec", "net", "net/http", "syscall", "unsafe"}

// rooms is the table; the first entry that fits a package counts.
var rooms = []room{
	{path: "cmd/fairlead", inside: []string{"internal/..."}, outside: []string{"github.com/spf13/pflag", "k8s.io/klog/v2", "sigs.k8s.io/yaml"}, effects: []string{"syscall"}},
	{path: "internal/archtest"},
	{path: "internal/fwd"},
	{path: "internal/fwdtext", inside: []string{"internal/fwd"}},
	{path: "internal/cluster", inside: []string{"internal/fwd"}, effects: []string{"time"}}, // for time.Time in values
	{path: "internal/delta"},
	{path: "internal/instance"},
	{path: "internal/compile", inside: []string{"internal/cluster", "internal/fwd"}},
	{path: "internal/filewatch", outside: []string{"github.com/fsnotify/fsnotify"}},
	{path: "internal/config", inside: []string{"internal/cluster", "internal/compile", "internal/filewatch", "internal/fwd"},
		outside: []string{"github.com/spf13/pflag", "k8s.io/apimachinery/pkg/api/resource", "k8s.io/apimachinery/pkg/apis/meta/v1",
			"k8s.io/component-base/logs/api/v1", "k8s.io/kube-proxy/config", "k8s.io/utils/net", "sigs.k8s.io/"}},
	{path: "internal/kube", inside: []string{"internal/cluster", "internal/filewatch", "internal/fwd"},
		outside: []string{"k8s.io/", "sigs.k8s.io/", "github.com/fsnotify/fsnotify"}, effects: []string{"net", "net/http"}},
	{path: "internal/backend/backendtest", inside: []string{"internal/backend", "internal/fwd", "internal/fwdtext", "internal/oracle", "internal/compile", "internal/cluster", "internal/delta"},
		outside: []string{"github.com/google/go-cmp", "golang.org/x/tools/txtar"}, test: true},
	{path: "internal/host/xtables/rulesim", inside: []string{"internal/fwd", "internal/host/xtables"}, test: true},
	{path: "internal/backend/nftables/nftsim", inside: []string{"internal/fwd", "internal/host/netlink", "internal/host/nft"}, outside: []string{"golang.org/x/sys"}, test: true},
	{path: "internal/backend/nftables", inside: []string{"internal/backend", "internal/fwd", "internal/host/nft", "internal/instance"}, outside: []string{"golang.org/x/sys"}},
	{path: "internal/backend/ipvs/ipvssim", inside: []string{"internal/host/xtables/rulesim", "internal/fwd"}, test: true},
	{path: "internal/backend/ipvs", inside: []string{"internal/backend", "internal/fwd", "internal/host/...", "internal/instance"}, outside: []string{"golang.org/x/sys"}},
	{path: "internal/backend/...", inside: []string{"internal/backend", "internal/fwd", "internal/delta", "internal/host/...", "internal/instance"}},
	{path: "internal/host/hosttest", outside: []string{"github.com/vishvananda/", "golang.org/x/sys"}, effects: []string{"net", "os/exec", "syscall"}, test: true},
	{path: "internal/host/conntrack/conntrackfake", inside: []string{"internal/host/conntrack"}, test: true},
	{path: "internal/host/ipset/ipsetfake", inside: []string{"internal/host/ipset"}, outside: []string{"golang.org/x/sys"}, test: true},
	{path: "internal/host/ipvs/ipvsfake", inside: []string{"internal/host/ipvs"}, outside: []string{"golang.org/x/sys"}, test: true},
	{path: "internal/host/link/linkfake", inside: []string{"internal/host/link"}, outside: []string{"golang.org/x/sys"}, test: true},
	{path: "internal/host/nft", inside: []string{"internal/fwd", "internal/host/netlink"}, outside: []string{"golang.org/x/sys"}},
	{path: "internal/host/xtables", inside: []string{"internal/fwd", "internal/host/nft"}, outside: []string{"github.com/coreos/go-iptables", "golang.org/x/sys"},
		effects: []string{"os/exec", "syscall", "unsafe"}},
	{path: "internal/host/...",
		outside: []string{"github.com/coreos/go-iptables", "github.com/moby/ipvs", "github.com/vishvananda/", "golang.org/x/sys"},
		effects: []string{"net", "os/exec", "syscall", "unsafe"}},
	{path: "internal/staleflow", inside: []string{"internal/fwd", "internal/host/..."}},
	{path: "internal/localport", inside: []string{"internal/fwd"}, effects: []string{"net"}},
	{path: "internal/health", inside: []string{"internal/cluster", "internal/fwd"}, effects: []string{"net", "net/http", "syscall"}},
	{path: "internal/metrics", inside: []string{"internal/cluster", "internal/fwd", "internal/reconcile"},
		outside: []string{"github.com/prometheus/client_golang", "k8s.io/apimachinery/pkg/util/cache"}, effects: []string{"net", "net/http"}},
	{path: "internal/kubeproxy", inside: []string{"internal/fwd", "internal/host/..."}, outside: []string{"golang.org/x/sys"}, effects: []string{"net/http"}},
	{path: "internal/tuning", inside: []string{"internal/config", "internal/host/sysctl"}},
	{path: "internal/reconcile", inside: []string{"internal/backend", "internal/cluster", "internal/compile", "internal/config", "internal/fwd"}},
	{path: "internal/fieldtest", test: true},
	{path: "internal/benchtest", inside: []string{"internal/backend", "internal/cluster", "internal/compile", "internal/fwd"}, test: true},
	{path: "internal/oracle", inside: []string{"internal/fwd"}, outside: []string{"k8s.io/api", "k8s.io/apimachinery", "sigs.k8s.io/yaml"}, test: true},
}
