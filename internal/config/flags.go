package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// value is a flag: a parser that says in its error what is allowed, and the text of the default.
type value struct {
	typ  string
	text string
	set  func(string) error
}

func (v *value) String() string { return v.text }
func (v *value) Type() string   { return v.typ }
func (v *value) Set(s string) error {
	if err := v.set(s); err != nil {
		return err
	}
	v.text = s
	return nil
}

// to makes a value that parses into p.
func to[T any](p *T, typ, def string, parse func(string) (T, error)) *value {
	return &value{typ: typ, text: def, set: func(s string) error {
		got, err := parse(s)
		if err == nil {
			*p = got
		}
		return err
	}}
}

// Bind registers all flags; parsing them changes c. Words in their names may be joined with _ as well.
func (c *Config) Bind(fs *pflag.FlagSet) {
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	c.bindSource(fs)
	c.bindDatapath(fs)
	c.bindProcess(fs)
	c.bindIPVS(fs)
	c.bindConntrack(fs)
}

// bindIPVS registers what only mode ipvs needs.
func (c *Config) bindIPVS(fs *pflag.FlagSet) {
	v := &c.IPVS
	fs.StringVar(&v.Scheduler, "ipvs-scheduler", v.Scheduler, "scheduler of virtual servers")
	fs.Var(to(&v.ExcludeCIDRs, "CIDRs", "", parsePrefixes), "ipvs-exclude-cidrs", "networks of VIPs whose virtual servers are never touched")
	bindBool(fs, &v.StrictARP, "ipvs-strict-arp", "do not answer ARP requests for VIPs on other interfaces")
	fs.Var(to(&v.TCPTimeout, "duration", "0s", parseNonNegative), "ipvs-tcp-timeout", "time-out of idle TCP connections; 0 leaves it alone")
	fs.Var(to(&v.TCPFinTimeout, "duration", "0s", parseNonNegative), "ipvs-tcpfin-timeout", "time-out of TCP connections after a FIN; 0 leaves it alone")
	fs.Var(to(&v.UDPTimeout, "duration", "0s", parseNonNegative), "ipvs-udp-timeout", "time-out of UDP flows; 0 leaves it alone")
	fs.Var(to(&v.VIP, "mode", string(v.VIP), func(s string) (VIPMode, error) { return oneOf(s, vipModes) }), "ipvs-vip", "how the node owns VIPs: address, route or mark")
	fs.Var(to(&v.DrainTimeout, "duration", "0s", parseNonNegative), "ipvs-drain-timeout", "how long removed endpoints keep their connections; 0 for IPVS' TCP time-out")
}

// bindConntrack registers how connections are tracked.
func (c *Config) bindConntrack(fs *pflag.FlagSet) {
	v := &c.Conntrack
	fs.Var(to(&v.MaxPerCore, "number", strconv.Itoa(v.MaxPerCore), parseInt(0, math.MaxInt32)), "conntrack-max-per-core", "connections to track per CPU; 0 leaves the limit alone")
	fs.Var(to(&v.Min, "number", strconv.Itoa(v.Min), parseInt(0, math.MaxInt32)), "conntrack-min", "least number of connections to track")
	fs.Var(to(&v.TCPEstablishedTimeout, "duration", v.TCPEstablishedTimeout.String(), parseNonNegative), "conntrack-tcp-timeout-established", "time-out of idle TCP connections; 0 leaves it alone")
	fs.Var(to(&v.TCPCloseWaitTimeout, "duration", v.TCPCloseWaitTimeout.String(), parseNonNegative), "conntrack-tcp-timeout-close-wait", "time-out of TCP connections in CLOSE_WAIT; 0 leaves it alone")
	fs.Var(to(&v.UDPTimeout, "duration", "0s", parseNonNegative), "conntrack-udp-timeout", "time-out of UDP flows without an answer; 0 leaves it alone")
	fs.Var(to(&v.UDPStreamTimeout, "duration", "0s", parseNonNegative), "conntrack-udp-timeout-stream", "time-out of UDP flows with answers; 0 leaves it alone")
	bindBool(fs, &v.TCPBeLiberal, "conntrack-tcp-be-liberal", "accept TCP packets outside of the window")
}

// bindSource registers where the cluster's objects come from.
func (c *Config) bindSource(fs *pflag.FlagSet) {
	fs.StringVar(&c.Objects, "objects", c.Objects, "file or directory of API objects in YAML or JSON, instead of an API server")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", c.Kubeconfig, "kubeconfig file; without it and --master, the Pod's service account")
	fs.StringVar(&c.Master, "master", c.Master, "URL of the API server, overrides the kubeconfig's")
	fs.StringVar(&c.ContentType, "kube-api-content-type", c.ContentType, "media type of requests to the API server")
	fs.Var(to(&c.QPS, "number", "5", parseQPS), "kube-api-qps", "requests per second to the API server")
	fs.Var(to(&c.Burst, "number", "10", parseInt(0, math.MaxInt32)), "kube-api-burst", "requests to the API server at once")
	fs.Var(to(&c.NodeName, "name", "", parseNodeName), "hostname-override", "name of this node's Node object instead of the host name")
	fs.Var(to(&c.Resync, "duration", c.Resync.String(), parsePositive), "config-sync-period", "period after which informers repeat what they know")
}

// bindDatapath registers what changes the fate of packets.
func (c *Config) bindDatapath(fs *pflag.FlagSet) {
	mode := to(&c.Mode, "mode", string(c.Mode), func(s string) (Mode, error) { return oneOf(s, modes) })
	fs.Var(mode, "mode", "dataplane: iptables or nftables")
	fs.Var(mode, "proxy-mode", "the same as --mode")
	fs.Var(to(&c.BindAddress, "address", c.BindAddress.String(), parseAddr), "bind-address", "the node's address, if it is not to be the first one of the Node object")
	fs.Var(to(&c.ClusterCIDRs, "CIDRs", "", parsePrefixes), "cluster-cidr", "the cluster's pod network, or a pair for dual stack")
	fs.Var(to(&c.DetectMode, "mode", string(c.DetectMode), func(s string) (DetectMode, error) { return oneOf(s, detectModes) }),
		"detect-local-mode", "how pods are recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	fs.StringVar(&c.PodBridge, "pod-bridge-interface", c.PodBridge, "interface on which pods' packets arrive")
	fs.StringVar(&c.PodInterfacePrefix, "pod-interface-name-prefix", c.PodInterfacePrefix, "beginning of the names of interfaces on which pods' packets arrive")
	bindBool(fs, &c.MasqueradeAll, "masquerade-all", "rewrite the source of all that is sent to cluster IPs")
	fs.Var(to(&c.MasqueradeBit, "bit", "14", func(s string) (uint8, error) { n, err := parseInt(0, 31)(s); return uint8(n), err }),
		"iptables-masquerade-bit", "bit of the packet mark that asks for masquerade, 0 to 31")
	bindBool(fs, &c.LocalhostNodePorts, "iptables-localhost-nodeports", "serve node ports on 127.0.0.1 to the node itself")
	fs.Var(to(&c.SyncPeriod, "duration", c.SyncPeriod.String(), parsePositive), "iptables-sync-period", "time between two verifications of the kernel, and the longest wait before a retry")
	fs.Var(to(&c.MinSyncPeriod, "duration", c.MinSyncPeriod.String(), parseNonNegative), "iptables-min-sync-period", "shortest time between two syncs")
	fs.Var(&value{typ: "list", set: c.NodePortAddresses.add}, "nodeport-addresses", "where node ports are served: CIDRs, primary, localhost or all")
	fs.Var(&value{typ: "Gate=bool,...", set: c.setGates}, "feature-gates", "AllowServiceExternalIPs, PreferSameTrafficDistribution, LoadBalancerIPMode; others are reported and ignored")
}

// bindProcess registers what concerns the process alone.
func (c *Config) bindProcess(fs *pflag.FlagSet) {
	fs.Var(to(&c.HealthzAddress, "address", c.HealthzAddress.String(), parseListen(healthzPort)), "healthz-bind-address", "where the health server listens; empty for none")
	fs.Var(to(&c.MetricsAddress, "address", c.MetricsAddress.String(), parseListen(metricsPort)), "metrics-bind-address", "where the metrics server listens; empty for none")
	fs.Var(to(&c.OOMScoreAdj, "number", "-999", parseInt(-1000, 1000)), "oom-score-adj", "the process's oom_score_adj, -1000 to 1000")
	fs.VarP(to(&c.Verbosity, "level", "0", parseInt(0, 100)), "v", "v", "verbosity of the log; 4 and more is for debugging")
	fs.Var(&value{typ: "format", text: "text", set: func(s string) error {
		format, err := oneOf(s, []string{"text", "json"})
		c.LogJSON = format == "json"
		return err
	}}, "logging-format", "text or json")
	bindBool(fs, &c.BindAddressHardFail, "bind-address-hard-fail", "end where a server cannot listen, instead of trying again")
	bindBool(fs, &c.EnableProfiling, "profiling", "serve /debug/pprof on the metrics server")
	bindBool(fs, &c.MetricsAuth, "metrics-auth", "authenticate and authorize requests to the metrics server")
	fs.StringVar(&c.ServiceProxyName, "service-proxy-name", c.ServiceProxyName, "value of the label service-proxy-name of the Services to serve")
	fs.StringVar(&c.RemoveTaint, "remove-taint", c.RemoveTaint, "key of a taint to take from this Node once the first rules are in the kernel")
	bindBool(fs, &c.Cleanup, "cleanup", "take all rules out of the kernel and end")
	bindBool(fs, &c.InitOnly, "init-only", "do what needs privileges and end")
	bindBool(fs, &c.ShowVersion, "version", "print the version")
}

func bindBool(fs *pflag.FlagSet, p *bool, name, usage string) {
	f := fs.VarPF(to(p, "bool", strconv.FormatBool(*p), parseBool), name, "", usage)
	f.NoOptDefVal = "true"
}

func parseBool(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("want true or false")
	}
	return b, nil
}

func parseInt(least, most int) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("want a whole number from %d to %d", least, most)
		}
		return n, nil
	}
}

func parseQPS(s string) (float32, error) {
	f, err := strconv.ParseFloat(s, 32)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, errors.New("want a number")
	}
	return float32(f), nil
}

func parsePositive(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, errors.New("want a duration above 0 with a unit, such as 30s")
	}
	return d, nil
}

func parseNonNegative(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, errors.New("want a duration with a unit, such as 1s, or 0")
	}
	return d, nil
}

func parseNodeName(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	name := strings.ToLower(strings.TrimSpace(s))
	if name == "" {
		return "", errors.New("want the name of a Node object, not blanks")
	}
	return name, nil
}

// parseAddr reads an address; nothing is the unspecified one.
func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.IPv4Unspecified(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, errors.New("want an IPv4 or IPv6 address")
	}
	return a, nil
}

// parseListen reads an address with or without a port.
func parseListen(port uint16) func(string) (netip.AddrPort, error) {
	return func(s string) (netip.AddrPort, error) {
		if s == "" {
			return netip.AddrPort{}, nil
		}
		if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
			return ap, nil
		}
		a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("want IP:port, IP (for port %d), or nothing for no server", port)
		}
		return netip.AddrPortFrom(a, port), nil
	}
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(strings.TrimSpace(s))
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8 or fd00::/64", s)
	}
	return p.Masked(), nil
}

// parsePrefixes reads a comma list; nothing is an empty list.
func parsePrefixes(s string) ([]netip.Prefix, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	var out []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		p, err := parsePrefix(part)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// add reads one more comma list: the flag may be repeated.
func (n *NodePortAddresses) add(s string) error {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		switch part = strings.TrimSpace(part); part {
		case "primary":
			n.Primary = true
		case "localhost":
			n.Localhost = true
		case "all":
			n.All = true
		default:
			p, err := parsePrefix(part)
			if err != nil {
				return fmt.Errorf("%w, nor primary, localhost or all", err)
			}
			n.Prefixes = append(n.Prefixes, p)
		}
	}
	return nil
}

// setGates reads Gate=bool pairs: the flag may be repeated, and the last word on a gate counts.
func (c *Config) setGates(s string) error {
	known := map[string]*bool{
		"AllowServiceExternalIPs":       &c.Gates.AllowServiceExternalIPs,
		"PreferSameTrafficDistribution": &c.Gates.PreferSameTrafficDistribution,
		"LoadBalancerIPMode":            &c.Gates.LoadBalancerIPMode,
	}
	unknown := make(map[string]struct{})
	for _, name := range c.UnknownGates {
		unknown[name] = struct{}{}
	}
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, text, found := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		on, err := strconv.ParseBool(strings.TrimSpace(text))
		if !found || name == "" || err != nil {
			return fmt.Errorf("%q is not a gate with true or false, such as LoadBalancerIPMode=true", pair)
		}
		if gate := known[name]; gate != nil {
			*gate = on
		} else {
			unknown[name] = struct{}{}
		}
	}
	c.UnknownGates = slices.Sorted(maps.Keys(unknown))
	return nil
}
