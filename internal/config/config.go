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

// VIPMode says how the node takes packets that are sent to a VIP of an IPVS virtual server for its own.
type VIPMode string

// The ways to own VIPs.
const (
	// VIPAddress binds each VIP to the device kube-ipvs0.
	VIPAddress VIPMode = "address"
	// VIPRoute has a local route for each VIP and binds none.
	VIPRoute VIPMode = "route"
	// VIPMark marks packets to VIPs and routes the mark to the node.
	VIPMark VIPMode = "mark"
)

var vipModes = []VIPMode{VIPAddress, VIPRoute, VIPMark}

// MasqueradeSource says which address the source of masqueraded connections is rewritten to.
type MasqueradeSource string

// The ways to choose a source.
const (
	// SourceAuto: the kernel takes an address of the interface by which the connection leaves.
	SourceAuto MasqueradeSource = "auto"
	// SourceNode: the node's own address of the family.
	SourceNode MasqueradeSource = "node"
)

var masqueradeSources = []MasqueradeSource{SourceAuto, SourceNode}

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
// changed after Settle and may be read by any goroutine. Do not copy one: Apply makes the next.
type Config struct {
	// settings is the table of all that can be said, bound to the fields below; flags are those of Bind.
	settings []*setting
	flags    []*flagValue
	// notes, args, hostname and file are how the Config came about: see Notes, Reload and Watch.
	notes    []string
	args     []string
	hostname func() (string, error)
	file     []byte
	// said holds what was said in a form that Settle completes.
	said said

	// Mode is the dataplane.
	Mode Mode
	// Objects is the path of a file or directory of API objects that is read instead of an API server; empty for none.
	Objects string
	// Kubeconfig is the path of a kubeconfig; Master overrides the server's URL. With neither, the Pod's service account.
	Kubeconfig, Master string
	// ContentType is the media type of what is sent to the API server.
	ContentType string
	// AcceptContentTypes is the Accept header of requests to the API server; empty lets the client choose.
	AcceptContentTypes string
	// QPS and Burst limit requests to the API server, per second and at once.
	QPS   float32
	Burst int
	// NodeName is the name of this node's Node object, lower case. It is empty only after Settle without a host name.
	NodeName string
	// BindAddress, if it is neither invalid nor unspecified, is taken for the node's address of its family.
	BindAddress netip.Addr
	// HealthzAddress and MetricsAddress are where the two servers listen; the zero AddrPort turns a server off.
	HealthzAddress, MetricsAddress netip.AddrPort
	// BindAddressHardFail ends the process where one of the two cannot listen; otherwise it tries again.
	BindAddressHardFail bool
	// EnableProfiling serves /debug/pprof and /debug/flags on the metrics server.
	EnableProfiling bool
	// MetricsAuth authenticates requests to the metrics server with TokenReview and authorizes them with SubjectAccessReview.
	MetricsAuth bool
	// ShowHiddenMetricsForVersion is accepted for kube-proxy's sake: no metrics are hidden.
	ShowHiddenMetricsForVersion string
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
	// MasqueradeSource is what sources are rewritten to.
	MasqueradeSource MasqueradeSource
	// LocalhostNodePorts serves node ports on 127.0.0.0/8 to the node itself.
	LocalhostNodePorts bool
	// SyncPeriod is the time between two verifications of the kernel and the longest wait before a retry; it is positive.
	// Settle takes it and MinSyncPeriod from the settings of the Mode.
	SyncPeriod time.Duration
	// MinSyncPeriod is the shortest time between the end of one sync and the start of the next, from 0 to SyncPeriod.
	MinSyncPeriod time.Duration
	// IPVS is what only mode ipvs needs.
	IPVS IPVS
	// Conntrack is how the kernel is to track connections.
	Conntrack Conntrack
	// ServiceProxyName is the value of the label service.kubernetes.io/service-proxy-name of the Services that are served;
	// empty for the Services without the label.
	ServiceProxyName string

	// NodeShared says that another instance of Fairlead works on the node, so that what no Service of ours has may be a Service's all the
	// same. It is no setting: whoever runs the daemon finds it out.
	NodeShared bool
	// Resync is the period after which informers repeat what they know; it is positive.
	Resync time.Duration
	// NodePortAddresses says on which addresses node ports are served.
	NodePortAddresses NodePortAddresses
	// Gates are the feature gates that change anything here.
	Gates Gates
	// UnknownGates are other gates that were set; they change nothing.
	UnknownGates map[string]bool
	// RemoveTaint is the key of a taint that is taken from this Node once the first rules are in the kernel; empty for none.
	RemoveTaint string
	// OOMScoreAdj is the process's oom_score_adj, from -1000 to 1000.
	OOMScoreAdj int
	// Verbosity is 0 for state changes, 4 and more for debugging.
	Verbosity int
	// VModule is a list pattern=level of files with a verbosity of their own.
	VModule string
	// LogJSON logs one JSON object a line, otherwise text.
	LogJSON bool
	// LogFlushFrequency is accepted for kube-proxy's sake: the log is not buffered.
	LogFlushFrequency time.Duration
	// ConfigFile is the path of a KubeProxyConfiguration, empty for none.
	ConfigFile string
	// WriteConfigTo is the path of a file that gets the resolved configuration, after which the process ends; empty for none.
	WriteConfigTo string
	// Cleanup takes all rules of Fairlead and of kube-proxy out of the kernel, after which the process ends.
	Cleanup bool
	// InitOnly does what needs privileges beyond NET_ADMIN, after which the process ends.
	InitOnly bool
	// ShowVersion asks for the version and nothing else.
	ShowVersion bool
}

// IPVS is what only mode ipvs needs.
type IPVS struct {
	// Scheduler is the kernel's name of the scheduler of virtual servers, "rr" unless the operator says otherwise.
	Scheduler string
	// ExcludeCIDRs are the networks of VIPs whose virtual servers belong to others and are never touched.
	ExcludeCIDRs []netip.Prefix
	// StrictARP keeps the node from answering ARP requests for VIPs on other interfaces, and from announcing them.
	StrictARP bool
	// TCPTimeout, TCPFinTimeout and UDPTimeout are after how long without a packet IPVS forgets a connection; 0 leaves the
	// kernel's value alone.
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration
	// VIP is how the node owns VIPs.
	VIP VIPMode
	// DrainTimeout is how long a removed destination may keep its connections; 0 stands for IPVS' TCP time-out.
	DrainTimeout time.Duration
}

// Conntrack is how the kernel is to track connections. In all numbers and durations 0 leaves the kernel's value alone.
type Conntrack struct {
	// MaxPerCore times the number of CPUs, but at least Min, is the size of the table. With MaxPerCore 0, Min counts for
	// nothing.
	MaxPerCore, Min int
	// TCPEstablishedTimeout and TCPCloseWaitTimeout are after how long without a packet a connection in that state is
	// forgotten. The kernel counts whole seconds.
	TCPEstablishedTimeout, TCPCloseWaitTimeout time.Duration
	// UDPTimeout and UDPStreamTimeout are the same for UDP flows without and with packets in both directions.
	UDPTimeout, UDPStreamTimeout time.Duration
	// TCPBeLiberal accepts packets outside of the window. False leaves the kernel's value alone.
	TCPBeLiberal bool
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

// said is what Settle makes fields of Config from, since that takes the Mode or the machine.
type said struct {
	// nodeName is --hostname-override.
	nodeName string
	// iptables, nftables and ipvs are what is said for these modes; mode ipvs has the mark and masquerading of iptables.
	iptables, nftables, ipvs stanza
	// healthzPort and metricsPort are the deprecated flags.
	healthzPort, metricsPort int
}

// stanza is what the file has for each mode.
type stanza struct {
	masqueradeAll             bool
	masqueradeBit             uint8
	syncPeriod, minSyncPeriod time.Duration
}

// Default returns what holds for everything that the operator does not mention.
func Default() *Config {
	usual := stanza{masqueradeBit: 14, syncPeriod: 30 * time.Second, minSyncPeriod: time.Second}
	c := &Config{
		said: said{
			iptables: usual, nftables: usual, ipvs: stanza{syncPeriod: 30 * time.Second},
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

// Parse reads the daemon's command line, and the file that it names. hostname finds the name of the machine, see Settle.
// pflag.ErrHelp stands for --help; other errors may be several, one line each. With an error the Config is good for its
// Notes alone, and may be nil.
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

// Settle reads the configuration file if there is one, completes and validates what was said. Flags that were given win
// over the file. hostname, which may be nil, is asked for the node's name where the operator gave none. The error holds
// everything that is wrong, one line each.
func (c *Config) Settle(hostname func() (string, error)) error {
	var all []refusal
	if c.ConfigFile != "" {
		data, err := os.ReadFile(c.ConfigFile)
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		c.file = data
		if all, err = c.load(data); err != nil {
			return fmt.Errorf("--config %s: %w", c.ConfigFile, err)
		}
	}
	for _, f := range c.flags {
		if f.given && f.err != nil {
			all = append(all, refusal{f.settings, fmt.Errorf("--%s %q: %w", f.name, f.text, f.err)})
		}
	}
	var errs []error
	for _, r := range all {
		if !slices.ContainsFunc(r.settings, func(s *setting) bool { return s.matters(c) }) {
			c.notes = append(c.notes, "ignored, since it does not matter here: "+r.err.Error())
			continue
		}
		errs = append(errs, r.err)
	}
	c.complete()
	errs = append(errs, c.findName(hostname))
	return errors.Join(append(errs, c.validate()...)...)
}

// findName settles the name of the Node object.
func (c *Config) findName(hostname func() (string, error)) error {
	c.NodeName = c.said.nodeName
	if c.NodeName != "" || hostname == nil {
		return nil
	}
	h, err := hostname()
	if err != nil {
		return fmt.Errorf("find the node's name, since --hostname-override is not set: %w", err)
	}
	if c.NodeName = strings.ToLower(strings.TrimSpace(h)); c.NodeName == "" {
		return errors.New("the machine has no host name: set --hostname-override to the name of its Node object")
	}
	return nil
}

// complete works out the fields that follow from several things that were said.
func (c *Config) complete() {
	c.servers()
	st := &c.said.iptables
	if c.Mode == ModeNFTables {
		st = &c.said.nftables
	}
	c.MasqueradeAll, c.MasqueradeBit = st.masqueradeAll, st.masqueradeBit
	if c.Mode == ModeIPVS {
		st = &c.said.ipvs
	}
	c.SyncPeriod, c.MinSyncPeriod = st.syncPeriod, st.minSyncPeriod
	for _, s := range c.settings {
		if s.note != "" && s.origin != unsaid && s.get() != s.def {
			c.notes = append(c.notes, fmt.Sprintf("%s %s has no effect: %s", c.name(s), s.get(), s.note))
		}
	}
}

// servers settles where the two servers listen: ports that were given apart, and addresses of the bind address' family
// where none were given.
func (c *Config) servers() {
	for _, srv := range []struct {
		flag, portFlag string
		addr           *netip.AddrPort
		port           int
		usual          uint16
		six            netip.Addr
	}{
		{"healthz-bind-address", "healthz-port", &c.HealthzAddress, c.said.healthzPort, healthzPort, netip.IPv6Unspecified()},
		{"metrics-bind-address", "metrics-port", &c.MetricsAddress, c.said.metricsPort, metricsPort, netip.IPv6Loopback()},
	} {
		address, port := c.setting(srv.flag), c.setting(srv.portFlag)
		if address.origin == unsaid && c.BindAddress.Is6() {
			*srv.addr = netip.AddrPortFrom(srv.six, srv.usual)
		}
		switch {
		case port.origin == unsaid:
		case c.ConfigFile != "":
			c.notes = append(c.notes, fmt.Sprintf("--%s %d has no effect together with --config: set %s", srv.portFlag, srv.port, address.field))
		case srv.port == 0:
			*srv.addr = netip.AddrPort{}
		case srv.addr.IsValid() && (address.origin == unsaid || srv.addr.Port() == srv.usual && !strings.HasSuffix(address.text, fmt.Sprintf(":%d", srv.usual))):
			*srv.addr = netip.AddrPortFrom(srv.addr.Addr(), uint16(srv.port))
		}
	}
}

// validate checks what takes more than one field.
func (c *Config) validate() []error {
	var errs []error
	refuse := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf(c.nameOf(flag)+" "+format, args...))
	}
	periods := "iptables"
	if c.Mode == ModeIPVS {
		periods = "ipvs"
	}
	if c.MinSyncPeriod > c.SyncPeriod {
		refuse(periods+"-min-sync-period", "%v: want at most %s, which is %v", c.MinSyncPeriod, c.nameOf(periods+"-sync-period"), c.SyncPeriod)
	}
	switch c.DetectMode {
	case DetectClusterCIDR:
		v4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
		n := len(c.ClusterCIDRs)
		if n > 2 || n == 2 && v4(c.ClusterCIDRs[0]) == v4(c.ClusterCIDRs[1]) {
			refuse("cluster-cidr", "%s: want one CIDR, or one of IPv4 and one of IPv6", join(c.ClusterCIDRs))
		}
	case DetectBridgeInterface:
		if c.setting("pod-bridge-interface").text == "" {
			refuse("pod-bridge-interface", "\"\": want the name of an interface with %s %s", c.nameOf("detect-local-mode"), c.DetectMode)
		}
	case DetectInterfacePrefix:
		if c.setting("pod-interface-name-prefix").text == "" {
			refuse("pod-interface-name-prefix", "\"\": want the beginning of a name with %s %s", c.nameOf("detect-local-mode"), c.DetectMode)
		}
	}
	if c.VModule != "" && c.LogJSON {
		refuse("vmodule", "%s: want none with %s json", c.VModule, c.nameOf("logging-format"))
	}
	return errs
}

// Notes are what the operator should know of how the Config came about, one sentence each: fields of the file that are not
// known, flags that won over the file, settings that have no effect. A nil Config has none.
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
