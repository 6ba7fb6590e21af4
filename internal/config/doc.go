// Package config turns command line flags and a KubeProxyConfiguration into one validated Config.
// From a Config and the facts about the node it derives what other packages need: the header of the
// forwarding table and the facts for the compiler.
//
//	command line ──────────┐                       ┌─ Header(node, local addresses) ─► fwd.Table
//	KubeProxyConfiguration ┴► settings ─► Config ─┼─ Facts(node)                   ─► compile
//	    ▲  (text for each)                         ├─ Warnings(node), Notes()       ─► log
//	    └──────────── YAML ────────────────────────┼─ Configz(), Flagz()            ─► metrics server
//	                                               └─ Watch ─► Diff, Apply          ─► a running process
//
// Every setting is one entry in a table (settings.go): a flag, a field of the file, or both, with
// one parser for the text of either. Binding flags, loading and writing the file, comparing, /flagz
// and docs/flags.md all walk this table.
//
// Names, defaults and limits are those of kube-proxy, so that its arguments and its ConfigMap keep
// working. As in kube-proxy, a field of the file counts as absent if it is not a pointer and has
// the zero value. Intended differences:
//
//   - flags given together with --config override the file, with a note; kube-proxy ignores them;
//   - unknown feature gates are reported but not fatal;
//   - an empty --healthz-bind-address or --metrics-bind-address disables the server;
//   - all errors are reported at once; errors in settings that the mode does not use are notes;
//   - if nodePortAddresses contains "primary" and the node has no address of a family, no node
//     ports are opened in that family; kube-proxy opens them on all addresses.
//
// Invariants:
//
//  1. A Config is immutable after Settle; Parse returns only settled ones. Apply returns a new one.
//  2. Every validation error is one line with the flag or field, the value and what is allowed.
//  3. Prefixes are masked and addresses unmapped; the operator's order is kept where it matters.
//  4. Parsing the text of a setting gives the same value.
//
// The package reads the configuration file and watches its directory; it does no other input or
// output, and it logs nothing. It may be imported by reconcile, metrics, tuning and cmd. It is
// tested with tables, a round trip of random flags through a file, a fuzz test of the file, and
// real directories for Watch.
package config
