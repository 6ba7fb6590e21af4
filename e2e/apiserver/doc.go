// Package apiserver runs a real kube-apiserver with a real etcd for tests: with validation,
// defaulting, address allocation and watches, but without controllers and nodes.
//
//	test ── rest.Config (dials inside the namespace) ─┐
//	                                                  ├─► kube-apiserver ─► etcd (127.0.0.1 of the same namespace)
//	daemons ── kubeconfig file ───────────────────────┘
//
// Both run in a network namespace of the lab, so their ports are fixed and do not conflict with
// other runs. hack/build-servers.sh builds both. Start takes about four seconds.
//
// Invariants:
//
//  1. Close stops both processes by their ids and removes their data. They also stop when the test
//     process ends.
//  2. Nothing creates EndpointSlices from Pods: the test writes them.
package apiserver
