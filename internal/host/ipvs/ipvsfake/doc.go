// Package ipvsfake has an IPVS in memory for tests of packages that use package ipvs.
//
// Only tests import it.
package ipvsfake
