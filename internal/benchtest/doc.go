// Package benchtest has what the Go benchmarks share: their clusters, and the report of the cost of
// a Service.
//
//	Service, Slice ─► Fragment ─► Changes ─► Render, Apply, Change of a backend on a kernel that is not one
//
// The clusters hold Services of one kind, a TCP port of an IPv4 cluster IP with endpoints all over
// the cluster, which is what most Services are. Sizes are those of all benchmarks, so that their
// numbers can be added up.
//
// It is for tests alone. Its own test compares what a benchmark would report with what was really
// allocated.
package benchtest
