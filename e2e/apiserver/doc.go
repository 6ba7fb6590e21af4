// Package apiserver runs a real kube-apiserver on a real etcd, for tests: the source of truth that informers watch, with
// its validation, defaulting and address allocation, but no controller and no node.
//
//	test ── rest.Config (dials inside the namespace) ─┐
//	                                                  ├─► kube-apiserver ─► etcd (127.0.0.1 of the same namespace)
//	daemons ── kubeconfig file ───────────────────────┘
//
// Both run in a network namespace of their own lab, so their ports are fixed and two runs never meet. hack/build-servers.sh
// builds both. Start takes about four seconds.
//
// Invariants:
//
//  1. Close ends both processes by their ids and removes their data; they end, too, when the test process dies.
//  2. Nobody watches for Pods: EndpointSlices are what the test writes.
package apiserver
