// Package ipsetfake has sets in memory for tests of packages that use package ipset, and the text
// form of sets.
//
// Only tests import it.
package ipsetfake
