package config

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// origin is where the value of a setting comes from.
type origin int

const (
	byDefault origin = iota
	byFile
	byFlag
)

// boolean is the type of flags that need no value.
const boolean = "bool"

// setting is one thing that the operator can configure: a flag, a field of KubeProxyConfiguration,
// or both. Its value is a field of Config. get and set convert the value to and from text; the text
// is the same for flag and field.
type setting struct {
	// flag and field are its names; either may be empty. Several settings may share a flag, which
	// sets all of them. alias and short are other names of the flag.
	flag, field, alias, short string
	// usage is one clause for --help; more is additional Markdown for docs/flags.md.
	usage, more string
	// group is the heading in docs/flags.md.
	group string
	// hidden hides a flag from --help, because it should not be used.
	hidden bool
	// note explains why an accepted setting has no effect; empty if it has an effect.
	note string
	// reload reports whether a change in the file can be applied to a running process; nil for
	// never.
	reload func(old, next *Config) bool
	// modes are the modes that use the setting; nil for all. only, if set, is a further condition.
	modes []Mode
	only  func(*Config) bool
	// list means that the values of a repeated flag are joined.
	list bool

	// typ describes the type for --help; get returns the text, set parses it.
	typ string
	get func() string
	set func(string) error

	// def is the default, origin where the value comes from, text what set was given last.
	def    string
	origin origin
	text   string
}

// assign sets the value and where it comes from.
func (s *setting) assign(text string, from origin) error {
	s.origin, s.text = from, text
	return s.set(text)
}

// inUse reports whether the setting has a meaning given the other settings.
func (s *setting) inUse(c *Config) bool {
	if len(s.modes) > 0 && !slices.Contains(s.modes, c.Mode) {
		return false
	}
	return s.only == nil || s.only(c)
}

// bind returns a setting for a field of Config.
func bind[T any](p *T, typ string, parse func(string) (T, error)) *setting {
	return &setting{typ: typ, get: func() string { return text(*p) }, set: func(s string) error {
		got, err := parse(s)
		if err == nil {
			*p = got
		}
		return err
	}}
}

// names sets the names and the usage.
func (s *setting) names(flag, field, usage string) *setting {
	s.flag, s.field, s.usage = flag, field, usage
	return s
}

// with applies options.
func (s *setting) with(options ...func(*setting)) *setting {
	for _, o := range options {
		o(s)
	}
	return s
}

// The options of settings: when a change can be applied to a running process, and what is special.
func live(s *setting)         { s.reload = func(_, _ *Config) bool { return true } }
func liveAddress(s *setting)  { s.reload = sameFamily }
func liveDetector(s *setting) { s.reload = sameDetector }
func livePorts(s *setting)    { s.reload = samePorts }
func list(s *setting)         { s.list = true }
func hidden(s *setting)       { s.hidden = true }

// onlyIn limits a setting to modes.
func onlyIn(modes ...Mode) func(*setting) { return func(s *setting) { s.modes = modes } }

// onlyDetecting limits a setting to a detect mode.
func onlyDetecting(m DetectMode) func(*setting) {
	return func(s *setting) { s.only = func(c *Config) bool { return c.DetectMode == m } }
}

// more adds Markdown to docs/flags.md.
func more(text string) func(*setting) { return func(s *setting) { s.more = text } }

// noEffect explains why the setting has no effect.
func noEffect(why string) func(*setting) { return func(s *setting) { s.note = why } }

// text returns the form that the parser of the type accepts.
func text(v any) string {
	switch v := v.(type) {
	case []netip.Prefix:
		return join(v)
	case netip.AddrPort:
		if !v.IsValid() {
			return ""
		}
		return v.String()
	}
	return fmt.Sprint(v)
}

// table returns all settings, in the order of docs/flags.md.
func (c *Config) table() []*setting {
	var all []*setting
	for _, g := range []struct {
		name     string
		settings []*setting
	}{
		{"The configuration file", c.fileSettings()},
		{"Where the cluster's objects come from", c.sourceSettings()},
		{"What happens to packets", c.datapathSettings()},
		{"Mode ipvs", c.ipvsSettings()},
		{"Connection tracking", c.conntrackSettings()},
		{"The process", c.processSettings()},
		{"Accepted without effect", ignoredSettings()},
	} {
		for _, s := range g.settings {
			s.group, s.def = g.name, s.get()
			all = append(all, s)
		}
	}
	return all
}

// fileSettings are about the configuration file and one-time actions.
func (c *Config) fileSettings() []*setting {
	return []*setting{
		bind(&c.ConfigFile, "file", anything).
			names("config", "", "file with a KubeProxyConfiguration; it is read again when it changes"),
		bind(&c.WriteConfigTo, "file", anything).
			names("write-config-to", "", "write the configuration to this file and exit"),
		bind(&c.Cleanup, boolean, parseBool).
			names("cleanup", "", "remove all rules of Fairlead and kube-proxy from the kernel and exit"),
		bind(&c.InitOnly, boolean, parseBool).
			names("init-only", "", "do only the setup that needs more privileges than NET_ADMIN, then exit"),
		bind(&c.ShowVersion, boolean, parseVersion).
			names("version", "", "print the version and exit"),
	}
}

// sourceSettings are about where the objects of the cluster come from.
func (c *Config) sourceSettings() []*setting {
	return []*setting{
		bind(&c.Objects, "path", anything).
			names("objects", "", "file or directory of API objects in YAML or JSON to use instead of an API server").
			with(more("See [objects.md](objects.md).")),
		bind(&c.Kubeconfig, "file", anything).
			names("kubeconfig", "clientConnection.kubeconfig", "kubeconfig file; without it and --master, the Pod's service account is used"),
		bind(&c.Master, "URL", anything).
			names("master", "", "URL of the API server; overrides the kubeconfig"),
		bind(&c.AcceptContentTypes, "types", anything).
			names("", "clientConnection.acceptContentTypes", "Accept header of requests to the API server"),
		bind(&c.ContentType, "type", orElse("application/vnd.kubernetes.protobuf")).
			names("kube-api-content-type", "clientConnection.contentType", "media type of requests to the API server"),
		bind(&c.QPS, "number", parseQPS).
			names("kube-api-qps", "clientConnection.qps", "maximum requests per second to the API server; 0 means 5, negative means no limit"),
		bind(&c.Burst, "number", parseBurst).
			names("kube-api-burst", "clientConnection.burst", "maximum burst of requests to the API server; 0 means 10"),
		bind(&c.raw.nodeName, "name", parseNodeName).
			names("hostname-override", "hostnameOverride", "name of this node's Node object, if it is not the host name").
			with(more("Converted to lower case.")),
		bind(&c.Resync, "duration", parsePositive).
			names("config-sync-period", "configSyncPeriod", "resync period of informers").
			with(more("Accepted for compatibility: no change is ever lost, so nothing is replayed.")),
		bind(&c.ServiceProxyName, "name", parseLabelValue).
			names("service-proxy-name", "", "only handle Services whose label service.kubernetes.io/service-proxy-name has this value").
			with(more("Without it, only Services that do not have the label. Each value is an [instance](operations.md#several-proxies-on-purpose) with its own names in the kernel.")),
	}
}

// datapathSettings change what happens to packets.
func (c *Config) datapathSettings() []*setting {
	ipt, nft := &c.raw.iptables, &c.raw.nftables
	notNFT := onlyIn(ModeIPTables, ModeIPVS)
	const bitUsage, allUsage = "bit of the packet mark that requests masquerading, 0 to 31", "masquerade all traffic to cluster IPs"
	const syncUsage, minUsage = "interval between verifications of the kernel, and the longest delay before a retry", "minimum time between two syncs"
	return []*setting{
		bind(&c.Mode, "mode", choice(modes)).
			names("mode", "mode", "dataplane: iptables, nftables or ipvs").
			with(func(s *setting) { s.alias = "proxy-mode" }, more("[iptables](iptables.md), [nftables](nftables.md).")),
		bind(&c.BindAddress, "address", parseAddr).
			names("bind-address", "bindAddress", "the node's address, if it is not the first one of the Node object").
			with(liveAddress, more("Nothing is bound to it. An IPv6 address, including `::`, also changes the default addresses of both servers to IPv6.")),
		bind(&c.DetectMode, "mode", choice(detectModes)).
			names("detect-local-mode", "detectLocalMode", "how local pods are detected: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix").
			with(liveDetector, more("See [4.2](datapath.md#42-detectors).")),
		bind(&c.ClusterCIDRs, "CIDRs", parsePrefixes).
			names("cluster-cidr", "clusterCIDR", "pod network of the cluster, or one IPv4 and one IPv6 network separated by a comma").
			with(liveDetector, onlyDetecting(DetectClusterCIDR)),
		bind(&c.PodBridge, "name", parseInterface).
			names("pod-bridge-interface", "detectLocal.bridgeInterface", "interface on which packets from pods arrive").
			with(liveDetector, onlyDetecting(DetectBridgeInterface)),
		bind(&c.PodInterfacePrefix, "name", parseInterface).
			names("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", "name prefix of the interfaces on which packets from pods arrive").
			with(liveDetector, onlyDetecting(DetectInterfacePrefix), more("Give it without `+` or `*`. 15 characters are a full interface name.")),
		bind(&ipt.masqueradeAll, boolean, parseBool).
			names("masquerade-all", "iptables.masqueradeAll", allUsage).with(live, notNFT),
		bind(&nft.masqueradeAll, boolean, parseBool).
			names("masquerade-all", "nftables.masqueradeAll", allUsage).with(live, onlyIn(ModeNFTables)),
		bind(&ipt.masqueradeBit, "bit", parseBit).
			names("iptables-masquerade-bit", "iptables.masqueradeBit", bitUsage),
		bind(&nft.masqueradeBit, "bit", parseBit).
			names("iptables-masquerade-bit", "nftables.masqueradeBit", bitUsage).with(onlyIn(ModeNFTables)),
		bind(&c.MasqueradeSource, "source", choice(masqueradeSources)).
			names("masquerade-source", "", "source address of masqueraded connections: auto (chosen by the kernel) or node (the node's address)").
			with(more("See [4.1](datapath.md#41-who-is-masqueraded).")),
		bind(&c.LocalhostNodePorts, boolean, parseBool).
			names("iptables-localhost-nodeports", "iptables.localhostNodePorts", "serve node ports on 127.0.0.1 for clients on the node").
			with(livePorts, onlyIn(ModeIPTables), more("Only mode iptables ([3.5](datapath.md#35-node-ports)); ignored in other modes.")),
		bind(&ipt.syncPeriod, "duration", parsePositive).
			names("iptables-sync-period", "iptables.syncPeriod", syncUsage).
			with(live, onlyIn(ModeIPTables), more("The flag applies to modes iptables and nftables, a field only to its own mode. Health checks depend on it ([3.8](datapath.md#38-health-of-the-node)).")),
		bind(&nft.syncPeriod, "duration", parsePositive).
			names("iptables-sync-period", "nftables.syncPeriod", syncUsage).with(live, onlyIn(ModeNFTables)),
		bind(&ipt.minSyncPeriod, "duration", parseNonNegative).
			names("iptables-min-sync-period", "iptables.minSyncPeriod", minUsage).
			with(live, onlyIn(ModeIPTables), more("At most the sync period. In the file, 0 means the default; only the flag can set 0.")),
		bind(&nft.minSyncPeriod, "duration", parseNonNegative).
			names("iptables-min-sync-period", "nftables.minSyncPeriod", minUsage).with(live, onlyIn(ModeNFTables)),
		bind(&c.NodePortAddresses, "list", parseNodePortAddresses).
			names("nodeport-addresses", "nodePortAddresses", "addresses on which node ports are served: CIDRs, primary, localhost or all").
			with(list, livePorts, more("Keywords and CIDRs can be combined, and the flag can be repeated. Empty means all addresses; in mode nftables it means `primary`, and loopback addresses are served only if the list names them: `localhost`, 127.0.0.1/32, ::1/128 ([3.5](datapath.md#35-node-ports)).")),
		{flag: "feature-gates", field: "featureGates", typ: "Gate=bool,...", list: true, get: c.gates, set: c.setGates, reload: sameConversion,
			usage: "AllowServiceExternalIPs, PreferSameTrafficDistribution, LoadBalancerIPMode; others are reported and ignored"},
	}
}

// ipvsSettings are only used in mode ipvs.
func (c *Config) ipvsSettings() []*setting {
	v, st := &c.IPVS, &c.raw.ipvs
	all := []*setting{
		bind(&st.syncPeriod, "duration", parsePositive).
			names("ipvs-sync-period", "ipvs.syncPeriod", "like --iptables-sync-period").with(live),
		bind(&st.minSyncPeriod, "duration", parseNonNegative).
			names("ipvs-min-sync-period", "ipvs.minSyncPeriod", "like --iptables-min-sync-period").with(live),
		bind(&v.Scheduler, "name", parseScheduler).
			names("ipvs-scheduler", "ipvs.scheduler", "default scheduler of virtual servers, by the kernel's name"),
		bind(&v.ExcludeCIDRs, "CIDRs", parsePrefixes).
			names("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", "networks of virtual servers that are never changed or deleted").
			with(list),
		bind(&v.StrictARP, boolean, parseBool).
			names("ipvs-strict-arp", "ipvs.strictARP", "do not answer ARP requests for VIPs on other interfaces, and do not announce VIPs"),
		bind(&v.TCPTimeout, "duration", parseNonNegative).
			names("ipvs-tcp-timeout", "ipvs.tcpTimeout", "timeout of idle TCP connections in IPVS; 0 keeps the kernel's value"),
		bind(&v.TCPFinTimeout, "duration", parseNonNegative).
			names("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", "timeout of TCP connections after a FIN in IPVS; 0 keeps the kernel's value"),
		bind(&v.UDPTimeout, "duration", parseNonNegative).
			names("ipvs-udp-timeout", "ipvs.udpTimeout", "timeout of UDP flows in IPVS; 0 keeps the kernel's value"),
		bind(&v.VIP, "mode", choice(vipModes)).
			names("ipvs-vip", "", "how the node owns VIPs: address, route or mark"),
		bind(&v.DrainTimeout, "duration", parseNonNegative).
			names("ipvs-drain-timeout", "", "how long a removed endpoint keeps its connections; 0 means the TCP timeout of IPVS"),
	}
	for _, s := range all {
		s.modes = []Mode{ModeIPVS}
	}
	return all
}

// conntrackSettings are written to the kernel once.
func (c *Config) conntrackSettings() []*setting {
	v := &c.Conntrack
	return []*setting{
		bind(&v.MaxPerCore, "number", parseInt(0, math.MaxInt32)).
			names("conntrack-max-per-core", "conntrack.maxPerCore", "maximum tracked connections per CPU; 0 keeps the kernel's limit"),
		bind(&v.Min, "number", parseInt(0, math.MaxInt32)).
			names("conntrack-min", "conntrack.min", "lower bound of the maximum of tracked connections"),
		bind(&v.TCPEstablishedTimeout, "duration", parseNonNegative).
			names("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", "timeout of idle TCP connections; 0 keeps the kernel's value"),
		bind(&v.TCPCloseWaitTimeout, "duration", parseNonNegative).
			names("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", "timeout of TCP connections in CLOSE_WAIT; 0 keeps the kernel's value"),
		bind(&v.TCPBeLiberal, boolean, parseBool).
			names("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", "accept TCP packets outside the window"),
		bind(&v.UDPTimeout, "duration", parseNonNegative).
			names("conntrack-udp-timeout", "conntrack.udpTimeout", "timeout of UDP flows without replies; 0 keeps the kernel's value"),
		bind(&v.UDPStreamTimeout, "duration", parseNonNegative).
			names("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", "timeout of UDP flows with replies; 0 keeps the kernel's value"),
	}
}

// processSettings are about the process.
func (c *Config) processSettings() []*setting {
	return []*setting{
		bind(&c.HealthzAddress, "address", parseListen(healthzPort)).
			names("healthz-bind-address", "healthzBindAddress", "address of the health server; empty disables it").
			with(more("`/healthz`, `/livez`, `/readyz`. In the file, empty means the default; only the flag can disable the server.")),
		bind(&c.MetricsAddress, "address", parseListen(metricsPort)).
			names("metrics-bind-address", "metricsBindAddress", "address of the metrics server; empty disables it").
			with(more("In the file, empty means the default; only the flag can disable the server.")),
		bind(&c.raw.healthzPort, "port", parseInt(0, math.MaxUint16)).
			names("healthz-port", "", "deprecated: port of the health server").
			with(hidden, more("Used if `--healthz-bind-address` has no port; 0 disables the server. No effect with `--config`.")),
		bind(&c.raw.metricsPort, "port", parseInt(0, math.MaxUint16)).
			names("metrics-port", "", "deprecated: port of the metrics server").
			with(hidden, more("Used if `--metrics-bind-address` has no port; 0 disables the server. No effect with `--config`.")),
		bind(&c.BindAddressHardFail, boolean, parseBool).
			names("bind-address-hard-fail", "bindAddressHardFail", "exit if a server cannot bind its address, instead of retrying"),
		bind(&c.EnableProfiling, boolean, parseBool).
			names("profiling", "enableProfiling", "serve /debug/pprof and /debug/flags on the metrics server"),
		bind(&c.MetricsAuth, boolean, parseBool).
			names("metrics-auth", "", "authenticate and authorize requests to the metrics server with the API server").
			with(more("Uses TokenReview and SubjectAccessReview.")),
		bind(&c.RemoveTaint, "key", anything).
			names("remove-taint", "", "key of a taint to remove from this Node once the first rules are in the kernel"),
		bind(&c.OOMScoreAdj, "number", parseInt(-1000, 1000)).
			names("oom-score-adj", "oomScoreAdj", "oom_score_adj of the process, -1000 to 1000").
			with(live, more("Without permission to change it, it stays as it is.")),
		bind(&c.Verbosity, "level", parseInt(0, math.MaxInt32)).
			names("v", "logging.verbosity", "log verbosity; 4 and higher is for debugging").
			with(live, func(s *setting) { s.short = "v" }),
		{flag: "logging-format", field: "logging.format", typ: "format", usage: "text or json", get: func() string {
			if c.LogJSON {
				return "json"
			}
			return "text"
		}, set: func(s string) error {
			format, err := choice([]string{"text", "json"})(s)
			if err == nil {
				c.LogJSON = format == "json"
			}
			return err
		}},
		bind(&c.LogFlushFrequency, "duration", parsePositive).
			names("log-flush-frequency", "logging.flushFrequency", "maximum time between flushes of the log").
			with(noEffect("the log is not buffered")),
		bind(&c.VModule, "file=level,...", parseVModule).
			names("vmodule", "logging.vmodule", "verbosity of single source files").
			with(list, noEffect("use -v, which applies to all files")),
		bind(&c.ShowHiddenMetricsForVersion, "version", anything).
			names("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", "show metrics hidden since this version").
			with(noEffect("no metrics are hidden")),
	}
}

// ignoredSettings are settings of kube-proxy that have nothing to act on here. They keep their
// values so that --write-config-to writes them.
func ignoredSettings() []*setting {
	const windows = "only used on Windows"
	const klog = "the log is written to standard error"
	const gone = "no longer supported by kube-proxy either: remove it"
	const stream = "all log levels share one unbuffered stream"
	const limits = "set --conntrack-max-per-core and --conntrack-min"
	const command = "run fairlead cleanup"
	const ids = "the file is not read"
	const userspace = "there is no userspace mode"
	var all []*setting
	for _, i := range []struct{ flag, field, typ, note string }{
		{"", "portRange", "ports", userspace},
		{"proxy-port-range", "", "ports", userspace},
		{"log-text-split-stream", "logging.options.text.splitStream", boolean, stream},
		{"log-text-info-buffer-size", "logging.options.text.infoBufferSize", "size", stream},
		{"log-json-split-stream", "logging.options.json.splitStream", boolean, stream},
		{"log-json-info-buffer-size", "logging.options.json.infoBufferSize", "size", stream},
		{"network-name", "winkernel.networkName", "name", windows},
		{"source-vip", "winkernel.sourceVip", "address", windows},
		{"enable-dsr", "winkernel.enableDSR", boolean, windows},
		{"root-hnsendpoint-name", "winkernel.rootHnsEndpointName", "name", windows},
		{"forward-healthcheck-vip", "winkernel.forwardHealthCheckVip", boolean, windows},
		{"windows-service", "windowsRunAsService", boolean, windows},
		{"boot-id-file", "", "files", ids},
		{"machine-id-file", "", "files", ids},
		{"cleanup-ipvs", "", boolean, command},
		{"cleanup-iptables", "", boolean, command},
		{"conntrack-max", "", "number", limits},
		{"resource-container", "", "name", gone},
		{"udp-timeout", "", "duration", gone},
		{"add-dir-header", "", boolean, klog},
		{"alsologtostderr", "", boolean, klog},
		{"log-backtrace-at", "", "file:line", klog},
		{"log-dir", "", "directory", klog},
		{"log-file", "", "file", klog},
		{"log-file-max-size", "", "number", klog},
		{"logtostderr", "", boolean, klog},
		{"one-output", "", boolean, klog},
		{"skip-headers", "", boolean, klog},
		{"skip-log-headers", "", boolean, klog},
		{"stderrthreshold", "", "level", klog},
	} {
		var value string
		parse := anything
		switch {
		case i.typ == boolean:
			value, parse = "false", parseBoolText
		case i.typ == "size":
			value = "0"
		case i.field == "portRange":
			parse = parsePortRange
		}
		all = append(all, bind(&value, i.typ, parse).names(i.flag, i.field, i.note).with(hidden, noEffect(i.note)))
	}
	return all
}
