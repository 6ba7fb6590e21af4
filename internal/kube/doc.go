// Package kube reads Kubernetes objects and reports Events. It converts API objects, with all their
// optional and malformed fields, to the small values of package cluster, and delivers them to the
// loop. It is the only package that imports k8s.io/client-go and the API types. It makes no
// forwarding decisions.
//
//	API server ─► Reflector ─► keyStore ─────┐
//	  (WatchList, protobuf)  (names, versions)│ Converter ┌──────┐ Wake
//	                                          ├─────────► │ Feed │ ────► loop: Drain(cluster.Store)
//	files ─► reader ─► FileSource ────────────┘           └──────┘
//	           (merged, compared with the last state)
//
// client-go's Reflector, event broadcaster and clients do the protocol work. This package adds what
// they lack: stores that keep no API objects (keystore.go), lists that are decoded object by object
// from servers without streaming lists (stream.go), a log of outages by cause instead of by request
// (outage.go), and a timeout for watches that the server does not end (watchstate.go).
//
// Invariants:
//
//  1. API objects are dropped after their conversion. What stays in memory is the cluster value
//     and, per object, its name and version.
//  2. A conversion never panics. It keeps what is valid and returns a Problem for every field that
//     it ignores. A Problem is logged once per version of the object and reported as an Event on
//     the Service.
//  3. Objects of equal meaning give Equal values: ports, hints, ranges and endpoints are sorted and
//     without duplicates.
//  4. The Feed holds at most one pending version of an object, the last. Every change is followed
//     by a Wake. All changes from one reading of the files are drained together.
//  5. If a source fails (API server unreachable, file that cannot be parsed), the last known state
//     stays.
//
// Selection and parsing of fields follow kube-proxy: Services and EndpointSlices with one of the
// labels service.kubernetes.io/service-proxy-name and service.kubernetes.io/headless belong to
// other proxies, except those with our own name, if we have one.
//
// Package kube may be imported by the loop and by commands. It is tested with tables and fuzz tests
// (conversion), temporary directories (files) and a small list-and-watch server over HTTP (API).
package kube
