package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
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
	// ModeIPVS programs IPVS virtual servers over netlink.
	ModeIPVS Mode = "ipvs"
)

// modes lists what --mode accepts; the first is the default.
var modes = []Mode{ModeIPTables, ModeNFTables, ModeIPVS}

// VIPMode selects how the node accepts packets to the VIPs of IPVS virtual servers as local.
type VIPMode string

// The VIP modes.
const (
	// VIPAddress adds each VIP to the device kube-ipvs0.
	VIPAddress VIPMode = "address"
	// VIPRoute adds a local route for each VIP instead of an address.
	VIPRoute VIPMode = "route"
	// VIPMark marks packets to VIPs and delivers marked packets locally.
	VIPMark VIPMode = "mark"
)

var vipModes = []VIPMode{VIPAddress, VIPRoute, VIPMark}

// MasqueradeSource selects the source address of masqueraded connections.
type MasqueradeSource string

// The masquerade sources.
const (
	// SourceAuto lets the kernel choose an address of the outgoing interface.
	SourceAuto MasqueradeSource = "auto"
	// SourceNode is the node's address of the family.
	SourceNode MasqueradeSource = "node"
)

var masqueradeSources = []MasqueradeSource{SourceAuto, SourceNode}

// DetectMode selects how connections from local pods are detected.
type DetectMode string

// The detect modes.
const (
	// DetectClusterCIDR matches sources in --cluster-cidr.
	DetectClusterCIDR DetectMode = "ClusterCIDR"
	// DetectNodeCIDR matches sources in the node's podCIDR.
	DetectNodeCIDR DetectMode = "NodeCIDR"
	// DetectBridgeInterface matches packets that arrive on --pod-bridge-interface.
	DetectBridgeInterface DetectMode = "BridgeInterface"
	// DetectInterfacePrefix matches packets that arrive on an interface whose name begins with
	// --pod-interface-name-prefix.
	DetectInterfacePrefix DetectMode = "InterfaceNamePrefix"
)

var detectModes = []DetectMode{DetectClusterCIDR, DetectNodeCIDR, DetectBridgeInterface, DetectInterfacePrefix}

// Config holds everything the operator configures. Create one with Parse, or with Default, Bind and
// Settle. It is immutable after Settle and safe for concurrent use. Do not copy it; Apply returns a
// new one.
type Config struct {
	// settings is the table of all settings, bound to the fields below; flags are the flags of
	// Bind.
	settings []*setting
	flags    []*flagValue
	// notes, args, hostname and file record how the Config was made; see Notes, Parse and Watch.
	notes    []string
	args     []string
	hostname func() (string, error)
	file     []byte
	// raw holds the values from which Settle derives other fields.
	raw raw

	// Mode is the dataplane.
	Mode Mode
	// Objects is the path of a file or directory of API objects to use instead of an API server;
	// empty for none.
	Objects string
	// Kubeconfig is the path of a kubeconfig; Master overrides the server URL. Without both, the
	// Pod's service account is used.
	Kubeconfig, Master string
	// ContentType is the media type of requests to the API server.
	ContentType string
	// AcceptContentTypes is the Accept header of requests to the API server; empty means the
	// client's default.
	AcceptContentTypes string
	// QPS and Burst limit requests to the API server: the rate per second and the burst size.
	QPS   float32
	Burst int
	// NodeName is the name of this node's Node object, in lower case. It is empty only if Settle
	// had no hostname function.
	NodeName string
	// BindAddress, if valid and specified, is used as the node's address of its family.
	BindAddress netip.Addr
	// HealthzAddress and MetricsAddress are where the two servers listen; the zero AddrPort
	// disables a server.
	HealthzAddress, MetricsAddress netip.AddrPort
	// BindAddressHardFail exits if a server cannot bind its address, instead of retrying.
	BindAddressHardFail bool
	// EnableProfiling serves /debug/pprof and /debug/flags on the metrics server.
	EnableProfiling bool
	// MetricsAuth authenticates requests to the metrics server with TokenReview and authorizes them
	// with SubjectAccessReview.
	MetricsAuth bool
	// ShowHiddenMetricsForVersion is accepted for compatibility with kube-proxy; no metrics are
	// hidden.
	ShowHiddenMetricsForVersion string
	// DetectMode selects how local pods are detected, with ClusterCIDRs, PodBridge or
	// PodInterfacePrefix as its parameter.
	DetectMode DetectMode
	// ClusterCIDRs are the pod networks of the cluster, at most one per family in mode ClusterCIDR.
	ClusterCIDRs []netip.Prefix
	// PodBridge is the name of the interface on which packets from pods arrive.
	PodBridge string
	// PodInterfacePrefix is the common name prefix of the interfaces on which packets from pods
	// arrive.
	PodInterfacePrefix string
	// MasqueradeAll masquerades all traffic to cluster IPs.
	MasqueradeAll bool
	// MasqueradeBit is the bit of the packet mark that requests masquerading, from 0 to 31.
	MasqueradeBit uint8
	// MasqueradeSource is the address that masqueraded sources are rewritten to.
	MasqueradeSource MasqueradeSource
	// LocalhostNodePorts serves node ports on 127.0.0.0/8 for clients on the node.
	LocalhostNodePorts bool
	// SyncPeriod is the interval between verifications of the kernel and the longest delay before a
	// retry; it is positive. Settle takes SyncPeriod and MinSyncPeriod from the settings of the
	// Mode.
	SyncPeriod time.Duration
	// MinSyncPeriod is the minimum time between the end of one sync and the start of the next, from
	// 0 to SyncPeriod.
	MinSyncPeriod time.Duration
	// IPVS configures mode ipvs.
	IPVS IPVS
	// Conntrack configures the kernel's connection tracking.
	Conntrack Conntrack
	// ServiceProxyName selects Services whose label service.kubernetes.io/service-proxy-name has
	// this value; empty selects Services without the label.
	ServiceProxyName string

	// NodeShared reports that another Fairlead instance runs on the node. Addresses that none of
	// our Services has may then belong to its Services. It is not a setting; the daemon detects it.
	NodeShared bool
	// Resync is the resync period of informers; it is positive. Accepted for compatibility: nothing
	// has to be replayed.
	Resync time.Duration
	// NodePortAddresses selects the addresses on which node ports are served.
	NodePortAddresses NodePortAddresses
	// Gates are the feature gates that have an effect.
	Gates Gates
	// UnknownGates are all other gates that were set; they have no effect.
	UnknownGates map[string]bool
	// RemoveTaint is the key of a taint to remove from this Node once the first rules are in the
	// kernel; empty for none.
	RemoveTaint string
	// OOMScoreAdj is the process's oom_score_adj, from -1000 to 1000.
	OOMScoreAdj int
	// Verbosity is 0 for state changes, 4 and more for debugging.
	Verbosity int
	// VModule is a list of pattern=level pairs: the verbosity of single source files.
	VModule string
	// LogJSON logs one JSON object per line instead of text.
	LogJSON bool
	// LogFlushFrequency is accepted for compatibility with kube-proxy; the log is not buffered.
	LogFlushFrequency time.Duration
	// ConfigFile is the path of a KubeProxyConfiguration; empty for none.
	ConfigFile string
	// WriteConfigTo is the path to write the resolved configuration to before exiting; empty for
	// none.
	WriteConfigTo string
	// Cleanup removes all rules of Fairlead and kube-proxy from the kernel and exits.
	Cleanup bool
	// InitOnly does only the setup that needs more privileges than NET_ADMIN, then exits.
	InitOnly bool
	// ShowVersion prints the version and exits.
	ShowVersion bool
}

// IPVS configures mode ipvs.
type IPVS struct {
	// Scheduler is the kernel's name of the default scheduler of virtual servers.
	Scheduler string
	// ExcludeCIDRs are networks of VIPs whose virtual servers are never changed or deleted.
	ExcludeCIDRs []netip.Prefix
	// StrictARP prevents the node from answering ARP requests for VIPs on other interfaces, and
	// from announcing VIPs.
	StrictARP bool
	// TCPTimeout, TCPFinTimeout and UDPTimeout are the idle timeouts of IPVS connections; 0 keeps
	// the kernel's value.
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration
	// VIP selects how the node owns VIPs.
	VIP VIPMode
	// DrainTimeout is how long a removed destination may keep its connections; 0 means the TCP
	// timeout of IPVS.
	DrainTimeout time.Duration
}

// Conntrack configures the kernel's connection tracking. In all numbers and durations 0 keeps the
// kernel's value.
type Conntrack struct {
	// The table size is MaxPerCore times the number of CPUs, but at least Min. If MaxPerCore is 0,
	// Min is ignored.
	MaxPerCore, Min int
	// TCPEstablishedTimeout and TCPCloseWaitTimeout are the idle timeouts of connections in these
	// states. The kernel counts whole seconds.
	TCPEstablishedTimeout, TCPCloseWaitTimeout time.Duration
	// UDPTimeout and UDPStreamTimeout are the idle timeouts of UDP flows with packets in one
	// direction and in both.
	UDPTimeout, UDPStreamTimeout time.Duration
	// TCPBeLiberal accepts packets outside the TCP window. False keeps the kernel's value.
	TCPBeLiberal bool
}

// NodePortAddresses is the parsed --nodeport-addresses.
type NodePortAddresses struct {
	// Primary, Localhost and All report that the list contains the keyword.
	Primary, Localhost, All bool
	// Prefixes are the CIDRs in the list, masked.
	Prefixes []netip.Prefix
}

// Unset reports whether the list is empty.
func (n NodePortAddresses) Unset() bool {
	return !n.Primary && !n.Localhost && !n.All && len(n.Prefixes) == 0
}

// Gates are the feature gates that have an effect.
type Gates struct {
	// AllowServiceExternalIPs honors spec.externalIPs.
	AllowServiceExternalIPs bool
	// PreferSameTrafficDistribution honors hints that name nodes.
	PreferSameTrafficDistribution bool
	// LoadBalancerIPMode ignores ingress addresses with ipMode Proxy; without it they count as VIP.
	LoadBalancerIPMode bool
}

// The default ports of the two servers.
const (
	healthzPort = 10256
	metricsPort = 10249
)

// raw holds values from which Settle derives fields of Config: the result depends on the Mode or on
// the machine.
type raw struct {
	// nodeName is --hostname-override.
	nodeName string
	// iptables, nftables and ipvs are the settings of each mode. Mode ipvs uses the mark and
	// masquerading of iptables.
	iptables, nftables, ipvs modeSettings
	// healthzPort and metricsPort are the deprecated flags.
	healthzPort, metricsPort int
}

// modeSettings are the settings that each mode has in a section of the file.
type modeSettings struct {
	masqueradeAll             bool
	masqueradeBit             uint8
	syncPeriod, minSyncPeriod time.Duration
}

// Default returns a Config with all defaults.
func Default() *Config {
	usual := modeSettings{masqueradeBit: 14, syncPeriod: 30 * time.Second, minSyncPeriod: time.Second}
	c := &Config{
		raw: raw{
			iptables: usual, nftables: usual, ipvs: modeSettings{syncPeriod: 30 * time.Second},
			healthzPort: healthzPort, metricsPort: metricsPort,
		},
		Mode:               ModeIPTables,
		ContentType:        "application/vnd.kubernetes.protobuf",
		QPS:                5,
		Burst:              10,
		BindAddress:        netip.IPv4Unspecified(),
		HealthzAddress:     netip.AddrPortFrom(netip.IPv4Unspecified(), healthzPort),
		MetricsAddress:     netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), metricsPort),
		DetectMode:         DetectClusterCIDR,
		MasqueradeBit:      14,
		MasqueradeSource:   SourceAuto,
		LocalhostNodePorts: true,
		SyncPeriod:         30 * time.Second,
		MinSyncPeriod:      time.Second,
		Resync:             15 * time.Minute,
		Gates: Gates{
			AllowServiceExternalIPs:       true,
			PreferSameTrafficDistribution: true,
			LoadBalancerIPMode:            true,
		},
		IPVS: IPVS{Scheduler: "rr", VIP: VIPAddress},
		Conntrack: Conntrack{
			MaxPerCore: 32 * 1024, Min: 128 * 1024,
			TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour,
		},
		OOMScoreAdj:       -999,
		LogFlushFrequency: 5 * time.Second,
	}
	c.settings = c.table()
	return c
}

// Parse parses the daemon's command line and the configuration file it names. hostname returns the
// host name; see Settle. The error is pflag.ErrHelp for --help; other errors may have several
// lines, one per problem. If there is an error, only the Notes of the Config are valid, and it may
// be nil.
func Parse(args []string, hostname func() (string, error)) (*Config, error) {
	c := Default()
	c.args, c.hostname = slices.Clone(args), hostname
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
	return c, c.Settle(hostname)
}

// Settle reads the configuration file, if there is one, derives the remaining fields and validates
// everything. Flags override the file. hostname, which may be nil, provides the node's name if the
// operator gave none. The error lists all problems, one per line.
func (c *Config) Settle(hostname func() (string, error)) error {
	var invalid []invalidValue
	if c.ConfigFile != "" {
		data, err := os.ReadFile(c.ConfigFile)
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		c.file = data
		if invalid, err = c.load(data); err != nil {
			return fmt.Errorf("--config %s: %w", c.ConfigFile, err)
		}
	}
	for _, f := range c.flags {
		if f.given && f.err != nil {
			invalid = append(invalid, invalidValue{f.settings, fmt.Errorf("--%s %q: %w", f.name, f.text, f.err)})
		}
	}
	var errs []error
	for _, v := range invalid {
		if !slices.ContainsFunc(v.settings, func(s *setting) bool { return s.inUse(c) }) {
			c.notes = append(c.notes, "ignoring an invalid value that is not used in this configuration: "+v.err.Error())
			continue
		}
		errs = append(errs, v.err)
	}
	c.complete()
	errs = append(errs, c.findName(hostname))
	return errors.Join(append(errs, c.validate()...)...)
}

// findName determines the name of the Node object.
func (c *Config) findName(hostname func() (string, error)) error {
	c.NodeName = c.raw.nodeName
	if c.NodeName != "" || hostname == nil {
		return nil
	}
	h, err := hostname()
	if err != nil {
		return fmt.Errorf("get the host name, which is needed because --hostname-override is not set: %w", err)
	}
	if c.NodeName = strings.ToLower(strings.TrimSpace(h)); c.NodeName == "" {
		return errors.New("this machine has no host name: set --hostname-override to the name of its Node object")
	}
	return nil
}

// complete derives the fields that depend on several settings.
func (c *Config) complete() {
	c.servers()
	st := &c.raw.iptables
	if c.Mode == ModeNFTables {
		st = &c.raw.nftables
	}
	c.MasqueradeAll, c.MasqueradeBit = st.masqueradeAll, st.masqueradeBit
	if c.Mode == ModeIPVS {
		st = &c.raw.ipvs
	}
	c.SyncPeriod, c.MinSyncPeriod = st.syncPeriod, st.minSyncPeriod
	for _, s := range c.settings {
		if s.note != "" && s.origin != byDefault && s.get() != s.def {
			c.notes = append(c.notes, fmt.Sprintf("%s %s has no effect: %s", c.name(s), s.get(), s.note))
		}
	}
}

// servers determines where the two servers listen. It applies the deprecated port flags, and
// defaults to the address family of the bind address.
func (c *Config) servers() {
	for _, srv := range []struct {
		flag, portFlag string
		addr           *netip.AddrPort
		port           int
		usual          uint16
		six            netip.Addr
	}{
		{"healthz-bind-address", "healthz-port", &c.HealthzAddress, c.raw.healthzPort, healthzPort, netip.IPv6Unspecified()},
		{"metrics-bind-address", "metrics-port", &c.MetricsAddress, c.raw.metricsPort, metricsPort, netip.IPv6Loopback()},
	} {
		address, port := c.setting(srv.flag), c.setting(srv.portFlag)
		if address.origin == byDefault && c.BindAddress.Is6() {
			*srv.addr = netip.AddrPortFrom(srv.six, srv.usual)
		}
		switch {
		case port.origin == byDefault:
		case c.ConfigFile != "":
			c.notes = append(c.notes, fmt.Sprintf("--%s %d has no effect with --config: set the field %s instead", srv.portFlag, srv.port, address.field))
		case srv.port == 0:
			*srv.addr = netip.AddrPort{}
		case srv.addr.IsValid() && (address.origin == byDefault || srv.addr.Port() == srv.usual && !strings.HasSuffix(address.text, fmt.Sprintf(":%d", srv.usual))):
			*srv.addr = netip.AddrPortFrom(srv.addr.Addr(), uint16(srv.port))
		}
	}
}

// validate checks constraints between fields.
func (c *Config) validate() []error {
	var errs []error
	reject := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf(c.nameOf(flag)+" "+format, args...))
	}
	periods := "iptables"
	if c.Mode == ModeIPVS {
		periods = "ipvs"
	}
	if c.MinSyncPeriod > c.SyncPeriod {
		reject(periods+"-min-sync-period", "%v: want at most %s, which is %v", c.MinSyncPeriod, c.nameOf(periods+"-sync-period"), c.SyncPeriod)
	}
	switch c.DetectMode {
	case DetectClusterCIDR:
		v4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
		n := len(c.ClusterCIDRs)
		if n > 2 || n == 2 && v4(c.ClusterCIDRs[0]) == v4(c.ClusterCIDRs[1]) {
			reject("cluster-cidr", "%s: want one CIDR, or one of IPv4 and one of IPv6", join(c.ClusterCIDRs))
		}
	case DetectBridgeInterface:
		if c.setting("pod-bridge-interface").text == "" {
			reject("pod-bridge-interface", "\"\": want an interface name, because of %s %s", c.nameOf("detect-local-mode"), c.DetectMode)
		}
	case DetectInterfacePrefix:
		if c.setting("pod-interface-name-prefix").text == "" {
			reject("pod-interface-name-prefix", "\"\": want a name prefix, because of %s %s", c.nameOf("detect-local-mode"), c.DetectMode)
		}
	}
	if c.VModule != "" && c.LogJSON {
		reject("vmodule", "%s: want none if %s is json", c.VModule, c.nameOf("logging-format"))
	}
	return errs
}

// Notes returns remarks for the operator on how the Config was made, one sentence each: unknown
// fields in the file, flags that override the file, settings without effect. A nil Config has none.
func (c *Config) Notes() []string {
	if c == nil {
		return nil
	}
	return slices.Clone(c.notes)
}

func join(ps []netip.Prefix) string {
	s := make([]string, 0, len(ps))
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}
