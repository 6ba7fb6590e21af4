// Package e2e tests all of Fairlead: objects written to a real API server, the real daemon on two
// nodes, and real packets between network namespaces.
//
//	client-go ─► kube-apiserver ─► informers of fairlead on node1, node2 ─► kernel ◄─ packets ─ pods, nodes, client
//	     └───────────── expected: tables in the tests, and package oracle ────────────── compared ┘
//
// cluster_test.go starts the cluster and objects_test.go writes objects. Most other files are
// groups of cases that TestCluster runs on each dataplane, in mode ipvs with each --ipvs-vip.
// Further files:
//
//   - ipvs_corners_test.go has known problems of IPVS with Services. Where mode ipvs differs from
//     the others, the tests name the entry of docs/ipvs.md.
//   - prometheus_test.go scrapes a daemon with a Prometheus.
//   - stage_test.go has a lab whose daemons read their objects from a file, for tests of packets
//     only: firewalls, refusals, sources.
//
// The packages below do not depend on this one: lab (namespaces), probe (packets), apiserver,
// daemon. Package cluster has nodes with real kubelets, for command conformance.
//
// Tests never sleep to let the daemon catch up. After writing objects they call settle, which adds
// a Service and waits until both daemons serve it: watches deliver in order, so everything written
// before is served then, too.
//
// Run as root, after hack/deps.sh path: FAIRLEAD_KERNEL_TESTS=1 go test ./e2e; "make test" includes
// it. E2E_SEED=n repeats a random cluster. On a kernel without IPVS, "make test-ipvs" runs mode
// ipvs. One group of it: hack/uml/ipvs-tests ./e2e FAIRLEAD_BINARY=$PWD/bin/fairlead -test.v
// -test.timeout=20m -test.run=TestCluster/ipvs/paths. "make test-vm" runs switches between mode
// ipvs and the other modes with the nft userland.
package e2e
