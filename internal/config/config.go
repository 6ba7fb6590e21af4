package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Mode names a dataplane.
type Mode string

// The modes.
const (
	// ModeIPTables programs the kernel with iptables-restore and ip6tables-restore.
	ModeIPTables Mode = "iptables"
	// ModeNFTables programs nf_tables over netlink.
	ModeNFTables Mode = "nftables"
)

// modes lists what --mode accepts.
var modes = []Mode{ModeIPTables, ModeNFTables}

// DetectMode says how a connection from a pod of the cluster is recognised.
type DetectMode string

// The ways to recognise pods.
const (
	// DetectClusterCIDR: the source is inside --cluster-cidr.
	DetectClusterCIDR DetectMode = "ClusterCIDR"
	// DetectNodeCIDR: the source is inside the node's podCIDR.
	DetectNodeCIDR DetectMode = "NodeCIDR"
	// DetectBridgeInterface: the packet arrived on --pod-bridge-interface.
	DetectBridgeInterface DetectMode = "BridgeInterface"
	// DetectInterfacePrefix: the packet arrived on an interface whose name begins with --pod-interface-name-prefix.
	DetectInterfacePrefix DetectMode = "InterfaceNamePrefix"
)

var detectModes = []DetectMode{DetectClusterCIDR, DetectNodeCIDR, DetectBridgeInterface, DetectInterfacePrefix}

// Config is everything that the operator decides. Make one with Parse, or with Default, Bind and Settle. It is not
// changed after Settle and may be read by any goroutine.
type Config struct {
	// Mode is the dataplane.
	Mode Mode
	// Objects is the path of a file or directory of API objects that is read instead of an API server; empty for none.
	Objects string
	// Kubeconfig is the path of a kubeconfig; Master overrides the server's URL. With neither, the Pod's service account.
	Kubeconfig, Master string
	// ContentType is the media type that is asked of the API server.
	ContentType string
	// QPS and Burst limit requests to the API server, per second and at once.
	QPS   float32
	Burst int
	// NodeName is the name of this node's Node object, lower case. It is empty only after Settle without a host name.
	NodeName string
	// BindAddress, if it is neither invalid nor unspecified, is taken for the node's address of its family.
	BindAddress netip.Addr
	// HealthzAddress and MetricsAddress are where the two servers listen; the zero AddrPort turns a server off.
	HealthzAddress, MetricsAddress netip.AddrPort
	// DetectMode, and for its values ClusterCIDRs, PodBridge and PodInterfacePrefix, say what a local pod is.
	DetectMode DetectMode
	// ClusterCIDRs are the pod networks of the cluster, at most one of each family in mode ClusterCIDR.
	ClusterCIDRs []netip.Prefix
	// PodBridge is the name of the interface on which pods' packets arrive.
	PodBridge string
	// PodInterfacePrefix is the beginning of the names of the interfaces on which pods' packets arrive.
	PodInterfacePrefix string
	// MasqueradeAll rewrites the source of everything sent to cluster IPs.
	MasqueradeAll bool
	// MasqueradeBit is the bit of the packet mark that asks for masquerade, from 0 to 31.
	MasqueradeBit uint8
	// LocalhostNodePorts serves node ports on 127.0.0.0/8 to the node itself.
	LocalhostNodePorts bool
	// SyncPeriod is the time between two verifications of the kernel and the longest wait before a retry; it is positive.
	SyncPeriod time.Duration
	// MinSyncPeriod is the shortest time between the end of one sync and the start of the next, from 0 to SyncPeriod.
	MinSyncPeriod time.Duration
	// Resync is the period after which informers repeat what they know; it is positive.
	Resync time.Duration
	// NodePortAddresses says on which addresses node ports are served.
	NodePortAddresses NodePortAddresses
	// Gates are the feature gates that change anything here.
	Gates Gates
	// UnknownGates are the names of other gates that were set, sorted.
	UnknownGates []string
	// OOMScoreAdj is the process's oom_score_adj, from -1000 to 1000.
	OOMScoreAdj int
	// Verbosity is 0 for state changes, 4 and more for debugging.
	Verbosity int
	// LogJSON logs one JSON object a line, otherwise text.
	LogJSON bool
	// ShowVersion asks for the version and nothing else.
	ShowVersion bool
}

// NodePortAddresses is the parsed --nodeport-addresses.
type NodePortAddresses struct {
	// Primary, Localhost and All say that the list has the word.
	Primary, Localhost, All bool
	// Prefixes are the CIDRs in the list, masked.
	Prefixes []netip.Prefix
}

// Unset says that the list is empty.
func (n NodePortAddresses) Unset() bool {
	return !n.Primary && !n.Localhost && !n.All && len(n.Prefixes) == 0
}

// Gates are the feature gates that change what the node does with packets.
type Gates struct {
	// AllowServiceExternalIPs honours spec.externalIPs.
	AllowServiceExternalIPs bool
	// PreferSameTrafficDistribution honours hints that name nodes.
	PreferSameTrafficDistribution bool
	// LoadBalancerIPMode leaves ingress addresses of mode Proxy alone; without it they count as mode VIP.
	LoadBalancerIPMode bool
}

// The ports of the two servers where an address comes without one.
const (
	healthzPort = 10256
	metricsPort = 10249
)

// Default returns what holds for everything that the operator does not mention.
func Default() *Config {
	return &Config{
		Mode:               ModeIPTables,
		ContentType:        "application/vnd.kubernetes.protobuf",
		QPS:                5,
		Burst:              10,
		BindAddress:        netip.IPv4Unspecified(),
		HealthzAddress:     netip.AddrPortFrom(netip.IPv4Unspecified(), healthzPort),
		MetricsAddress:     netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), metricsPort),
		DetectMode:         DetectClusterCIDR,
		MasqueradeBit:      14,
		LocalhostNodePorts: true,
		SyncPeriod:         30 * time.Second,
		MinSyncPeriod:      time.Second,
		Resync:             15 * time.Minute,
		Gates: Gates{
			AllowServiceExternalIPs:       true,
			PreferSameTrafficDistribution: true,
			LoadBalancerIPMode:            true,
		},
		OOMScoreAdj: -999,
	}
}

// Parse reads the daemon's command line. hostname finds the name of the machine, see Settle. The error is one line;
// pflag.ErrHelp stands for --help.
func Parse(args []string, hostname func() (string, error)) (*Config, error) {
	c := Default()
	fs := pflag.NewFlagSet("fairlead", pflag.ContinueOnError)
	fs.Usage = func() {}
	c.Bind(fs)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("argument %q: want flags only", fs.Arg(0))
	}
	if c.ShowVersion {
		return c, nil
	}
	if err := c.Settle(hostname); err != nil {
		return nil, err
	}
	return c, nil
}

// Settle completes and validates what was bound. hostname, which may be nil, is asked for the node's name where the
// operator gave none.
func (c *Config) Settle(hostname func() (string, error)) error {
	if c.BindAddress.Is6() && !c.BindAddress.Is4In6() {
		d := Default()
		if c.HealthzAddress == d.HealthzAddress {
			c.HealthzAddress = netip.AddrPortFrom(netip.IPv6Unspecified(), healthzPort)
		}
		if c.MetricsAddress == d.MetricsAddress {
			c.MetricsAddress = netip.AddrPortFrom(netip.IPv6Loopback(), metricsPort)
		}
	}
	if c.NodeName == "" && hostname != nil {
		h, err := hostname()
		if err != nil {
			return fmt.Errorf("find the node's name, since --hostname-override is not set: %w", err)
		}
		if c.NodeName = strings.ToLower(strings.TrimSpace(h)); c.NodeName == "" {
			return errors.New("the machine has no host name: set --hostname-override to the name of its Node object")
		}
	}
	return c.validate()
}

// validate checks what takes more than one field.
func (c *Config) validate() error {
	if c.MinSyncPeriod > c.SyncPeriod {
		return fmt.Errorf("--iptables-min-sync-period %v: want at most --iptables-sync-period, which is %v", c.MinSyncPeriod, c.SyncPeriod)
	}
	switch c.DetectMode {
	case DetectClusterCIDR:
		v4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
		n := len(c.ClusterCIDRs)
		if n > 2 || n == 2 && v4(c.ClusterCIDRs[0]) == v4(c.ClusterCIDRs[1]) {
			return fmt.Errorf("--cluster-cidr %s: want one CIDR, or one of IPv4 and one of IPv6", join(c.ClusterCIDRs))
		}
	case DetectBridgeInterface:
		if c.PodBridge == "" {
			return fmt.Errorf("--pod-bridge-interface \"\": want the name of an interface with --detect-local-mode %s", c.DetectMode)
		}
	case DetectInterfacePrefix:
		if c.PodInterfacePrefix == "" {
			return fmt.Errorf("--pod-interface-name-prefix \"\": want the beginning of a name with --detect-local-mode %s", c.DetectMode)
		}
	}
	return nil
}

func join(ps []netip.Prefix) string {
	s := make([]string, 0, len(ps))
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// oneOf reads one of a set of names; empty stands for the first.
func oneOf[T ~string](s string, all []T) (T, error) {
	if s == "" {
		return all[0], nil
	}
	if i := slices.Index(all, T(s)); i >= 0 {
		return all[i], nil
	}
	names := make([]string, 0, len(all))
	for _, a := range all {
		names = append(names, string(a))
	}
	return "", fmt.Errorf("want %s", strings.Join(names, ", "))
}
