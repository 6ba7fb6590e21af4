// Package cluster runs a Kubernetes cluster with real nodes on one machine: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler in the network fabric of a lab, and nodes that are
// namespaces with containerd and a kubelet.
//
//	lab fabric: etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//	     │ routes
//	     ├── node1: init ─ containerd ─ runc ─ pods        root: overlay over the machine's root
//	     │              └─ kubelet                         /var/lib/{containerd,kubelet}: on disk
//	     ├── node2 …                                       pods' network: CNI plugins ptp, portmap
//	     └── client, outside of the cluster
//
// A node has its own network, mount, PID, UTS, IPC and cgroup namespaces. Its first process, Init,
// is the program that calls this package, started again with the argument InitArgument; it builds
// the node's root file system and reaps processes. When it ends, everything on the node ends.
//
// Images are made from Debian packages and programs of the Go modules that e2e/tools pins; nothing
// comes from an image registry. Files of a cluster are in one directory, which Close removes.
// Settings of the kernel that the kubelet wants to change for the whole machine are covered by
// files, so that they stay as they are.
//
// It needs root, cgroups (version 1 or 2), and what hack/deps.sh cluster installs.
package cluster
