package config

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
)

// origin says who said a setting last.
type origin int

const (
	unsaid origin = iota
	byFile
	byFlag
)

// boolean is the type of flags that need no value.
const boolean = "bool"

// setting is one thing that the operator decides: a flag, a field of KubeProxyConfiguration, or both. What it is set to
// lives in Config; a setting says it as text and takes text for it. That text is the same for flag and field.
type setting struct {
	// flag and field are its names, either may be empty. Several settings may share a flag, which then sets all of them.
	// alias and short are further names of the flag.
	flag, field, alias, short string
	// usage is for --help, one clause; more is what only the page about flags says, in Markdown.
	usage, more string
	// group is the heading in that page.
	group string
	// hidden keeps a flag that nobody should begin to use out of --help.
	hidden bool
	// note says why a setting is accepted although it has no effect; empty if it has one.
	note string
	// reload says when a change of the file is applied to a running process; nil for never.
	reload func(old, next *Config) bool
	// modes are those in which it means anything; nil for all. Otherwise only is asked.
	modes []Mode
	only  func(*Config) bool
	// list says that a flag given twice adds up.
	list bool

	// typ names what is wanted, get returns the text and set takes one.
	typ string
	get func() string
	set func(string) error

	// def is the default, origin who said text, if anybody did.
	def    string
	origin origin
	text   string
}

// say sets it.
func (s *setting) say(text string, by origin) error {
	s.origin, s.text = by, text
	return s.set(text)
}

// matters says that the setting means anything with the others as they are.
func (s *setting) matters(c *Config) bool {
	if len(s.modes) > 0 && !slices.Contains(s.modes, c.Mode) {
		return false
	}
	return s.only == nil || s.only(c)
}

// of makes a setting of a field of Config.
func of[T any](p *T, typ string, parse func(string) (T, error)) *setting {
	return &setting{typ: typ, get: func() string { return text(*p) }, set: func(s string) error {
		got, err := parse(s)
		if err == nil {
			*p = got
		}
		return err
	}}
}

// names gives a setting its names and its usage.
func (s *setting) names(flag, field, usage string) *setting {
	s.flag, s.field, s.usage = flag, field, usage
	return s
}

// with changes a setting that is made in a list.
func (s *setting) with(change func(*setting)) *setting {
	change(s)
	return s
}

func live(s *setting)      { s.reload = func(_, _ *Config) bool { return true } }
func list(s *setting)      { s.list = true }
func addressed(s *setting) { s.reload = sameFamily }
func detector(s *setting)  { s.reload = sameDetector }
func serving(s *setting)   { s.reload = samePorts }

// in limits a setting to modes.
func in(modes ...Mode) func(*setting) { return func(s *setting) { s.modes = modes } }

// detecting limits a setting to a way of recognising pods.
func detecting(m DetectMode) func(*setting) {
	return func(s *setting) { s.only = func(c *Config) bool { return c.DetectMode == m } }
}

// also says more on the page about flags.
func also(more string) func(*setting) { return func(s *setting) { s.more = more } }

// text is the form in which parse takes a value.
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

// table is all that the operator can say, in the order of the page about flags.
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

// fileSettings are about the configuration file, and what is done instead of running.
func (c *Config) fileSettings() []*setting {
	return []*setting{
		of(&c.ConfigFile, "file", anything).
			names("config", "", "file with a KubeProxyConfiguration, which is read again when it changes"),
		of(&c.WriteConfigTo, "file", anything).names("write-config-to", "", "write the configuration to this file and end"),
		of(&c.Cleanup, boolean, parseBool).
			names("cleanup", "", "take all rules of Fairlead and of kube-proxy out of the kernel and end"),
		of(&c.InitOnly, boolean, parseBool).names("init-only", "", "do what needs more privileges than NET_ADMIN and end"),
		of(&c.ShowVersion, boolean, parseVersion).names("version", "", "print the version and end"),
	}
}

// sourceSettings are about where the cluster's objects come from.
func (c *Config) sourceSettings() []*setting {
	return []*setting{
		of(&c.Objects, "path", anything).
			names("objects", "", "file or directory of API objects in YAML or JSON, instead of an API server").
			with(also("See [objects.md](objects.md).")),
		of(&c.Kubeconfig, "file", anything).
			names("kubeconfig", "clientConnection.kubeconfig", "kubeconfig file; without it and --master, the Pod's service account"),
		of(&c.Master, "URL", anything).names("master", "", "URL of the API server, overrides the kubeconfig's"),
		of(&c.AcceptContentTypes, "types", anything).
			names("", "clientConnection.acceptContentTypes", "Accept header of requests to the API server"),
		of(&c.ContentType, "type", orElse("application/vnd.kubernetes.protobuf")).
			names("kube-api-content-type", "clientConnection.contentType", "media type of requests to the API server"),
		of(&c.QPS, "number", parseQPS).
			names("kube-api-qps", "clientConnection.qps", "requests per second to the API server; 0 is 5, below 0 there is no limit"),
		of(&c.Burst, "number", parseBurst).
			names("kube-api-burst", "clientConnection.burst", "requests to the API server at once; 0 is 10"),
		of(&c.said.nodeName, "name", parseNodeName).
			names("hostname-override", "hostnameOverride", "name of this node's Node object instead of the host name").
			with(also("In lower case.")),
		of(&c.Resync, "duration", parsePositive).
			names("config-sync-period", "configSyncPeriod", "period after which informers repeat what they know").
			with(also("Nothing is lost that would have to be repeated.")),
		of(&c.ServiceProxyName, "name", parseLabelValue).
			names("service-proxy-name", "", "serve the Services with this value of the label service.kubernetes.io/service-proxy-name, and no others").
			with(also("Without it, the Services that do not have the label. Each value is an [instance](operations.md#several-proxies-on-purpose) with names of its own in the kernel.")),
	}
}

// datapathSettings change the fate of packets.
func (c *Config) datapathSettings() []*setting {
	ipt, nft := &c.said.iptables, &c.said.nftables
	notNFT := in(ModeIPTables, ModeIPVS)
	const bitUsage, allUsage = "bit of the packet mark that asks for masquerade, 0 to 31", "rewrite the source of all that is sent to cluster IPs"
	const syncUsage, minUsage = "time between two verifications of the kernel, and the longest wait before a retry", "shortest time between two syncs"
	return []*setting{
		of(&c.Mode, "mode", choice(modes)).
			names("mode", "mode", "dataplane: iptables, nftables or ipvs").with(func(s *setting) { s.alias = "proxy-mode" }).
			with(also("[iptables](iptables.md), [nftables](nftables.md).")),
		of(&c.BindAddress, "address", parseAddr).
			names("bind-address", "bindAddress", "the node's address, if it is not to be the first one of the Node object").with(addressed).
			with(also("Binds nothing. An IPv6 address, `::` included, also moves the default addresses of both servers to IPv6.")),
		of(&c.DetectMode, "mode", choice(detectModes)).
			names("detect-local-mode", "detectLocalMode", "how pods are recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix").
			with(detector).
			with(also("See [4.2](datapath.md#42-detectors).")),
		of(&c.ClusterCIDRs, "CIDRs", parsePrefixes).
			names("cluster-cidr", "clusterCIDR", "the cluster's pod network, or a pair of IPv4 and IPv6 separated by a comma").
			with(detector).
			with(detecting(DetectClusterCIDR)),
		of(&c.PodBridge, "name", parseInterface).
			names("pod-bridge-interface", "detectLocal.bridgeInterface", "interface on which pods' packets arrive").with(detector).
			with(detecting(DetectBridgeInterface)),
		of(&c.PodInterfacePrefix, "name", parseInterface).
			names("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", "beginning of the names of interfaces on which pods' packets arrive").
			with(detector).
			with(also("Without a `+` or `*`: every name that begins so matches. 15 characters are a whole name.")).
			with(detecting(DetectInterfacePrefix)),
		of(&ipt.masqueradeAll, boolean, parseBool).names("masquerade-all", "iptables.masqueradeAll", allUsage).with(live).with(notNFT),
		of(&nft.masqueradeAll, boolean, parseBool).
			names("masquerade-all", "nftables.masqueradeAll", allUsage).with(live).with(in(ModeNFTables)),
		of(&ipt.masqueradeBit, "bit", parseBit).names("iptables-masquerade-bit", "iptables.masqueradeBit", bitUsage),
		of(&nft.masqueradeBit, "bit", parseBit).
			names("iptables-masquerade-bit", "nftables.masqueradeBit", bitUsage).with(in(ModeNFTables)),
		of(&c.MasqueradeSource, "source", choice(masqueradeSources)).
			names("masquerade-source", "", "what sources are rewritten to: auto leaves it to the kernel, node is the node's own address").
			with(also("See [4.1](datapath.md#41-who-is-masqueraded).")),
		of(&c.LocalhostNodePorts, boolean, parseBool).
			names("iptables-localhost-nodeports", "iptables.localhostNodePorts", "serve node ports on 127.0.0.1 to the node itself").
			with(serving).
			with(in(ModeIPTables)).with(also("Mode iptables ([3.5](datapath.md#35-node-ports)); in other modes it means nothing.")),
		of(&ipt.syncPeriod, "duration", parsePositive).
			names("iptables-sync-period", "iptables.syncPeriod", syncUsage).with(live).with(in(ModeIPTables)).
			with(also("The flag counts in modes iptables and nftables, a field only in its own mode. Also the measure of health ([3.8](datapath.md#38-health-of-the-node)).")),
		of(&nft.syncPeriod, "duration", parsePositive).
			names("iptables-sync-period", "nftables.syncPeriod", syncUsage).with(live).with(in(ModeNFTables)),
		of(&ipt.minSyncPeriod, "duration", parseNonNegative).
			names("iptables-min-sync-period", "iptables.minSyncPeriod", minUsage).with(live).with(in(ModeIPTables)).
			with(also("At most the sync period. In the file 0 stands for the default; only the flag can say 0.")),
		of(&nft.minSyncPeriod, "duration", parseNonNegative).
			names("iptables-min-sync-period", "nftables.minSyncPeriod", minUsage).with(live).with(in(ModeNFTables)),
		of(&c.NodePortAddresses, "list", parseNodePortAddresses).
			names("nodeport-addresses", "nodePortAddresses", "where node ports are served: CIDRs, primary, localhost or all").
			with(list).with(serving).
			with(also("Words and CIDRs may be mixed, the flag may be repeated. Empty means all addresses; in mode nftables it means `primary`, and loopback is served only where it is named: `localhost`, 127.0.0.1/32, ::1/128 ([3.5](datapath.md#35-node-ports)).")),
		{flag: "feature-gates", field: "featureGates", typ: "Gate=bool,...", list: true, get: c.gates, set: c.setGates, reload: sameConversion,
			usage: "AllowServiceExternalIPs, PreferSameTrafficDistribution, LoadBalancerIPMode; others are reported and ignored"},
	}
}

// ipvsSettings matter in mode ipvs alone.
func (c *Config) ipvsSettings() []*setting {
	v, st := &c.IPVS, &c.said.ipvs
	all := []*setting{
		of(&st.syncPeriod, "duration", parsePositive).
			names("ipvs-sync-period", "ipvs.syncPeriod", "as --iptables-sync-period").with(live),
		of(&st.minSyncPeriod, "duration", parseNonNegative).
			names("ipvs-min-sync-period", "ipvs.minSyncPeriod", "as --iptables-min-sync-period").with(live),
		of(&v.Scheduler, "name", parseScheduler).
			names("ipvs-scheduler", "ipvs.scheduler", "scheduler of virtual servers, by the kernel's name"),
		of(&v.ExcludeCIDRs, "CIDRs", parsePrefixes).
			names("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", "networks of virtual servers that belong to others and are never touched").
			with(list),
		of(&v.StrictARP, boolean, parseBool).
			names("ipvs-strict-arp", "ipvs.strictARP", "answer no ARP requests for VIPs on other interfaces, and do not announce them"),
		of(&v.TCPTimeout, "duration", parseNonNegative).
			names("ipvs-tcp-timeout", "ipvs.tcpTimeout", "time-out of idle TCP connections in IPVS; 0 leaves the kernel's"),
		of(&v.TCPFinTimeout, "duration", parseNonNegative).
			names("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", "time-out of TCP connections after a FIN in IPVS; 0 leaves the kernel's"),
		of(&v.UDPTimeout, "duration", parseNonNegative).
			names("ipvs-udp-timeout", "ipvs.udpTimeout", "time-out of UDP flows in IPVS; 0 leaves the kernel's"),
		of(&v.VIP, "mode", choice(vipModes)).names("ipvs-vip", "", "how the node owns VIPs: address, route or mark"),
		of(&v.DrainTimeout, "duration", parseNonNegative).
			names("ipvs-drain-timeout", "", "how long a removed endpoint keeps its connections; 0 is IPVS' TCP time-out"),
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
		of(&v.MaxPerCore, "number", parseInt(0, math.MaxInt32)).
			names("conntrack-max-per-core", "conntrack.maxPerCore", "connections to track per CPU; 0 leaves the limit alone"),
		of(&v.Min, "number", parseInt(0, math.MaxInt32)).
			names("conntrack-min", "conntrack.min", "least number of connections to track"),
		of(&v.TCPEstablishedTimeout, "duration", parseNonNegative).
			names("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", "time-out of idle TCP connections; 0 leaves the kernel's"),
		of(&v.TCPCloseWaitTimeout, "duration", parseNonNegative).
			names("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", "time-out of TCP connections in CLOSE_WAIT; 0 leaves the kernel's"),
		of(&v.TCPBeLiberal, boolean, parseBool).
			names("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", "accept TCP packets outside of the window"),
		of(&v.UDPTimeout, "duration", parseNonNegative).
			names("conntrack-udp-timeout", "conntrack.udpTimeout", "time-out of UDP flows without an answer; 0 leaves the kernel's"),
		of(&v.UDPStreamTimeout, "duration", parseNonNegative).
			names("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", "time-out of UDP flows with answers; 0 leaves the kernel's"),
	}
}

// processSettings concern the process alone.
func (c *Config) processSettings() []*setting {
	hide := func(s *setting) { s.hidden = true }
	return []*setting{
		of(&c.HealthzAddress, "address", parseListen(healthzPort)).
			names("healthz-bind-address", "healthzBindAddress", "where the health server listens; empty for none").
			with(also("`/healthz`, `/livez`, `/readyz`. In the file empty stands for the default; only the flag can say that there is no server.")),
		of(&c.MetricsAddress, "address", parseListen(metricsPort)).
			names("metrics-bind-address", "metricsBindAddress", "where the metrics server listens; empty for none").
			with(also("As above.")),
		of(&c.said.healthzPort, "port", parseInt(0, math.MaxUint16)).
			names("healthz-port", "", "deprecated: port of the health server").with(hide).
			with(also("Counts where `--healthz-bind-address` has no port; 0 for no server. Not together with `--config`.")),
		of(&c.said.metricsPort, "port", parseInt(0, math.MaxUint16)).
			names("metrics-port", "", "deprecated: port of the metrics server").with(hide).
			with(also("As above.")),
		of(&c.BindAddressHardFail, boolean, parseBool).
			names("bind-address-hard-fail", "bindAddressHardFail", "end where a server cannot listen, instead of trying again"),
		of(&c.EnableProfiling, boolean, parseBool).
			names("profiling", "enableProfiling", "serve /debug/pprof and /debug/flags on the metrics server"),
		of(&c.MetricsAuth, boolean, parseBool).
			names("metrics-auth", "", "ask the API server whether requests to the metrics server are allowed").
			with(also("With TokenReview and SubjectAccessReview.")),
		of(&c.RemoveTaint, "key", anything).
			names("remove-taint", "", "key of a taint to take from this Node once the first rules are in the kernel"),
		of(&c.OOMScoreAdj, "number", parseInt(-1000, 1000)).
			names("oom-score-adj", "oomScoreAdj", "the process's oom_score_adj, -1000 to 1000").with(live).
			with(also("Where it may not be written it stays as it is.")),
		of(&c.Verbosity, "level", parseInt(0, math.MaxInt32)).
			names("v", "logging.verbosity", "verbosity of the log; 4 and more is for debugging").with(live).
			with(func(s *setting) { s.short = "v" }),
		{flag: "logging-format", field: "logging.format", typ: "format", usage: "text or json", get: func() string {
			if c.LogJSON {
				return "json"
			}
			return "text"
		}, set: func(s string) error {
			format, err := oneOf(s, []string{"text", "json"})
			if err == nil {
				c.LogJSON = format == "json"
			}
			return err
		}},
		of(&c.LogFlushFrequency, "duration", parsePositive).
			names("log-flush-frequency", "logging.flushFrequency", "longest time between flushes of the log").
			with(func(s *setting) { s.note = "the log is not buffered" }),
		of(&c.VModule, "file=level,...", parseVModule).
			names("vmodule", "logging.vmodule", "verbosity of single source files").with(list).
			with(func(s *setting) { s.note = "use -v, which counts for all files" }),
		of(&c.ShowHiddenMetricsForVersion, "version", anything).
			names("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", "show metrics that are hidden since this version").
			with(func(s *setting) { s.note = "no metrics are hidden" }),
	}
}

// ignoredSettings are kube-proxy's that have nothing to act on here. They keep what was said, so that it is written again.
func ignoredSettings() []*setting {
	const windows = "it is for Windows"
	const klog = "the log goes to standard error"
	const gone = "kube-proxy has forgotten it too: remove it"
	const stream = "info and errors go to one stream, unbuffered"
	const limits = "set --conntrack-max-per-core and --conntrack-min"
	const command = "run fairlead cleanup"
	const ids = "it is not read"
	var all []*setting
	for _, i := range []struct{ flag, field, typ, note string }{
		{"", "portRange", "ports", "there is no userspace mode"},
		{"proxy-port-range", "", "ports", "there is no userspace mode"},
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
		var said string
		if i.typ == boolean {
			said = strconv.FormatBool(false)
		}
		if i.typ == "size" {
			said = "0"
		}
		s := of(&said, i.typ, parserOf(i.typ)).names(i.flag, i.field, i.note)
		if i.field == "portRange" {
			s = of(&said, i.typ, parsePortRange).names(i.flag, i.field, i.note)
		}
		s.hidden, s.note = true, i.note
		all = append(all, s)
	}
	return all
}

// Reference is what the page about flags says of one flag, or of a field without one.
type Reference struct {
	// Group is the heading it belongs under.
	Group string
	// Flag, Alias and Short are its names without dashes; Fields those in KubeProxyConfiguration. Some are empty.
	Flag, Alias, Short string
	Fields             []string
	// Default is the value of what is not said.
	Default string
	// Usage is one clause, More is Markdown.
	Usage, More string
	// Reload says when a change of the file is applied without a restart: "yes", "no", "mostly", or "" without effect.
	Reload string
	// Hidden says that --help does not show it.
	Hidden bool
}

// References lists all that the operator can say.
func References() []Reference {
	var out []Reference
	at := make(map[string]int)
	always, never := Default(), Default()
	never.Mode, never.DetectMode, never.Gates.LoadBalancerIPMode = ModeNFTables, DetectNodeCIDR, false
	never.BindAddress = netip.IPv6Unspecified()
	for _, s := range Default().settings {
		if i, known := at[s.flag]; known && s.flag != "" {
			out[i].Fields = append(out[i].Fields, s.field)
			continue
		}
		at[s.flag] = len(out)
		r := Reference{Group: s.group, Flag: s.flag, Alias: s.alias, Short: s.short, Default: s.def, Usage: s.usage, More: s.more, Hidden: s.hidden, Reload: "no"}
		if s.field != "" {
			r.Fields = []string{s.field}
		}
		switch {
		case s.note != "":
			r.Reload = ""
			if s.usage != s.note {
				r.More = s.note
			}
		case s.field == "":
			r.Reload = ""
		case s.reload != nil && s.reload(always, never):
			r.Reload = "yes"
		case s.reload != nil:
			r.Reload = "mostly"
		}
		out = append(out, r)
	}
	return out
}
