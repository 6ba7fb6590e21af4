// Package ipvs programs the forwarding table with virtual servers of the kernel (IPVS), sets of addresses (ipset) and a
// constant number of iptables rules, for both families.
package ipvs
