// Package linkfake has a node's devices, addresses and routes in memory, for tests of packages that
// use package link.
//
// Only tests import it.
package linkfake
