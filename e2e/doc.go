// Package e2e tests the whole of Fairlead: objects written to a real API server, the real daemon on two nodes, and real
// packets between network namespaces.
//
//	client-go ─► kube-apiserver ─► informers of fairlead on node1, node2 ─► kernel ◄─ packets ─ pods, nodes, client
//	     └───────────── expected: tables in the tests, and package oracle ────────────── compared ┘
//
// How it is laid out: cluster_test.go makes the cluster, objects_test.go writes objects, and the rest are groups of cases
// that TestCluster runs against a cluster of each dataplane; in mode ipvs with each way in which packets come to IPVS, and
// ipvs_corners_test.go has what has gone wrong with IPVS and Services before. Where that mode does otherwise than the others
// the tests name the entry of docs/ipvs.md. prometheus_test.go has a Prometheus scrape a daemon. stage_test.go has a lab whose
// daemons read their objects from a file, for what is about packets alone: firewalls, refusals, sources. The packages below are useful without it: lab
// (namespaces), probe (packets), apiserver, daemon.
//
// A test never sleeps to let the daemon catch up. After it has written objects it calls settle, which adds a Service and
// waits until both daemons serve it: watches deliver in order, so that everything before is served then, too.
//
// Run: FAIRLEAD_KERNEL_TESTS=1 go test ./e2e, as root, after hack/deps.sh path; "make test" does. E2E_SEED=n repeats a random
// cluster. Mode ipvs runs in "make test-ipvs" where this kernel has no IPVS; one group of it by
// hack/uml/ipvs-tests ./e2e FAIRLEAD_BINARY=$PWD/bin/fairlead -test.v -test.timeout=20m -test.run=TestCluster/ipvs/paths.
// Switches between that mode and the others with the nft userland run in "make test-vm".
package e2e
