// Package conntrackfake is a connection tracking table in memory, for tests of packages that use
// package conntrack. Like the kernel it deletes a flow only if original tuple, zone and id are
// those of an entry.
//
// Only tests import it.
package conntrackfake
