// Package fieldtest checks that an Equal method compares every field, including fields that are
// added later.
//
//	fill a value ─► for each leaf of it: change the leaf ─► Equal must notice
//
// It is for tests alone, imports the standard library alone, and knows the values of package
// net/netip as leaves. Its own test uses an Equal that misses a field.
package fieldtest
