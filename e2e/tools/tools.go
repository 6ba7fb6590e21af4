//go:build tools

// Package tools pins the programs that tests and benchmarks run. Those that are commands of their
// modules are in go.mod; upstream's end-to-end tests are a package of tests.
package tools

import _ "k8s.io/kubernetes/test/e2e"
