// Package config turns what the operator wrote into one validated Config, and a Config and the facts about the node into
// what the other packages need: the header of the forwarding table and the facts of the compiler.
//
//	command line ─► Bind, Settle ─► Config ─┬─ Header(node, local addresses) ─► fwd.Table
//	                                        ├─ Facts(node)                   ─► compile
//	                                        └─ Warnings(node)                ─► log
//
// Names, defaults and limits of the flags are kube-proxy's, so that the arguments of its DaemonSet can be kept. What is
// different on purpose: unknown feature gates are reported and not fatal; an empty --healthz-bind-address or
// --metrics-bind-address really turns the server off; the word primary in --nodeport-addresses on a node without an
// address of a family opens no node ports in that family, where kube-proxy opens them on all addresses.
//
// Invariants:
//
//  1. After Settle a Config is never changed; Parse returns only settled ones.
//  2. Every refusal is one line that names the flag, the value and what is allowed.
//  3. Prefixes are masked and addresses unmapped; the order that the operator chose is kept where it decides.
//
// The package does no input or output and reads no clock. It may be imported by reconcile, metrics and cmd; it imports
// cluster, fwd, compile and pflag. Tested by tables.
package config
