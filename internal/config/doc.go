// Package config turns what the operator wrote into one validated Config, and a Config and the facts about the node into
// what the other packages need: the header of the forwarding table and the facts of the compiler.
//
//	command line ──────────┐                       ┌─ Header(node, local addresses) ─► fwd.Table
//	KubeProxyConfiguration ┴► settings ─► Config ─┼─ Facts(node)                   ─► compile
//	    ▲  (text for each)                         ├─ Warnings(node), Notes()       ─► log
//	    └──────────── YAML ────────────────────────┼─ Configz(), Flagz()            ─► metrics server
//	                                               └─ Watch ─► Diff, Apply          ─► a running process
//
// Everything that can be said is one entry in the table of settings: a flag, a field of the file, or both, with one parser
// for the text of either. Binding, loading, writing, comparing, /flagz and the page about flags all walk that table.
//
// Names, defaults and limits are kube-proxy's, so that its arguments and its ConfigMap can be kept. A field of the file
// that is no pointer and has the zero value counts as absent, which is how kube-proxy fills in defaults. What is different
// on purpose:
//
//   - flags that are given together with --config win over the file, and a note says so; kube-proxy drops them;
//   - unknown feature gates are reported and not fatal;
//   - an empty --healthz-bind-address or --metrics-bind-address really turns the server off;
//   - all that is wrong is reported at once; what is wrong in settings that do not matter in the mode is a note;
//   - the word primary in nodePortAddresses on a node without an address of a family opens no node ports in that family,
//     where kube-proxy opens them on all addresses.
//
// Invariants:
//
//  1. After Settle a Config is never changed; Parse returns only settled ones. Apply makes a new one.
//  2. Every refusal is one line that names the flag or the field, the value and what is allowed.
//  3. Prefixes are masked and addresses unmapped; the order that the operator chose is kept where it decides.
//  4. The text of a setting is what its parser takes, and gives the same value.
//
// The package reads the configuration file and watches its directory; beyond that it does no input or output. It logs
// nothing. It may be imported by reconcile, metrics, tuning and cmd. Tested by tables, by a round trip of random flags
// through a file, by fuzzing the file, and with real directories for Watch.
package config
