// Package kubeproxy finds what kube-proxy left in the kernel, in each of its modes, and removes it.
//
//	iptables  both userlands, both families: chains KUBE-SERVICES, KUBE-SVC-…, and the jumps to them     (modes iptables, ipvs)
//	IPVS      virtual servers on addresses of kube-ipvs0 and on node ports that a set of kube-proxy names; its addresses   (ipvs)
//	ip_set    the sets that kube-proxy makes, KUBE-… and KUBE-6-…                                                 (ipvs)
//	nf_tables the tables ip kube-proxy and ip6 kube-proxy                                                     (nftables)
//
// Invariants:
//
//  1. Find and Signs change nothing, and do not make the kernel load IPVS or ip_set. Remove only
//     removes what Find found.
//  2. Objects of other programs stay: those of the kubelet (KUBE-IPTABLES-HINT,
//     KUBE-KUBELET-CANARY, KUBE-FIREWALL, KUBE-MARK-DROP), of kube-router and of Fairlead, and
//     virtual servers on other addresses. IPVS is never flushed.
//  3. A chain that another program's rule jumps to stays, and is reported.
//  4. Removing twice is harmless, and a failure does not stop the rest.
//
// Connections through iptables and nf_tables continue, because connection tracking knows their
// endpoints. Connections through IPVS end with their virtual server.
//
// A Watcher reports that a kube-proxy runs on the same node. Running requests mode and metrics at
// its port, where another Fairlead may answer too. Signs looks for one object per mode: if it
// appears while Fairlead runs, a kube-proxy runs.
//
// Only commands import it. It is tested with fakes, and by the end-to-end tests with a real
// kube-proxy.
package kubeproxy
