// Package fieldtest checks that an Equal method compares every field, also one that was added long after it.
//
//	fill a value ─► for each leaf of it: change the leaf ─► Equal must notice
//
// It is for tests alone, imports the standard library alone, and knows the values of package net/netip as leaves. Its own
// test gives it an Equal that forgets a field.
package fieldtest
