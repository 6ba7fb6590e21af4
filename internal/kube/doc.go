// Package kube brings Kubernetes objects into Fairlead. It turns API objects, with all their optional and malformed
// fields, into the small values of package cluster and delivers them to the loop; and it reports Events. It is the
// only package that imports k8s.io/client-go and the API types. It decides nothing about forwarding.
//
//	API server ─► Reflector ─► keyStore ─────┐
//	  (WatchList, protobuf)  (names, versions)│ Convert…  ┌──────┐ Wake
//	                                          ├─────────► │ Feed │ ────► loop: Drain(cluster.Store)
//	files ─► reader ─► FileSource ────────────┘           └──────┘
//	           (merged, compared with what was sent)
//
// Invariants:
//
//  1. No API object outlives its conversion: what stays in memory is the cluster value and, per object, its name and
//     version.
//  2. A conversion never panics. It keeps what is valid and names every field that it sets aside in a Problem; a Problem
//     is logged once per version of the object and told to users as an Event on the Service.
//  3. Objects of equal meaning give Equal values: ports, hints, ranges and endpoints are sorted and without duplicates.
//  4. The Feed holds at most one pending version per object, the last. A Wake follows every change. What one reading of
//     the files changes is drained together.
//  5. A source that is lost (API server away, file that does not parse) leaves the last state in force. A watch that the
//     server has not ended in its time is cut and begun anew.
//
// Selection and reading of fields follow kube-proxy: Services and EndpointSlices that carry one of the labels
// service.kubernetes.io/service-proxy-name and service.kubernetes.io/headless are somebody else's, but for those with our
// own name, where we have one.
//
// Package kube may be imported by the loop and by commands. It is tested by tables and fuzz targets (conversion), by
// temporary directories (files) and by a small list-and-watch server over HTTP (API).
package kube
