// Package kubeproxy finds what kube-proxy has left in the kernel, in each of its modes, and takes it out.
//
//	iptables  both userlands, both families: chains KUBE-SERVICES, KUBE-SVC-…, and the jumps to them     (modes iptables, ipvs)
//	IPVS      virtual servers on addresses of kube-ipvs0 and on node ports that a set of kube-proxy names; its addresses   (ipvs)
//	ip_set    the sets that kube-proxy makes, KUBE-… and KUBE-6-…                                                 (ipvs)
//	nf_tables the tables ip kube-proxy and ip6 kube-proxy                                                     (nftables)
//
// Invariants:
//
//  1. Find and Signs change nothing, and do not make the kernel load IPVS or ip_set. Remove touches only what Find names.
//  2. Objects of others stay: the kubelet's (KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY, KUBE-FIREWALL, KUBE-MARK-DROP), kube-router's, our own, virtual
//     servers on other addresses. The table of IPVS is never flushed.
//  3. A chain that a rule of somebody else leads to stays as it is, and is named.
//  4. Doing it twice is harmless, and what fails does not stop the rest.
//
// Connections through iptables and nf_tables go on, since connection tracking knows where they go; those through IPVS end with
// their virtual server.
//
// A Watcher tells when a kube-proxy works on the node beside us: Running asks for mode and metrics at its port, where another
// Fairlead may answer as well, Signs looks at one object for each mode. What comes while we run was written by somebody who runs.
//
// Only commands import it. Tested on fakes, and by the end-to-end tests on what a real kube-proxy leaves.
package kubeproxy
