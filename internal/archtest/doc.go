// Package archtest keeps the plan of the house: which package may import which, and those house
// rules that are cheap to check. It has no code, only tests that parse the sources of the module.
//
//	internal/**, cmd/** ─► go/parser ─► imports, names, file lengths ─► the table of rooms in rooms_test.go
//
// Invariants:
//
//  1. Every package of the module, but those of the end-to-end tests, is in the table. What the
//     table does not list is a door that is not there.
//  2. Only what is in the shipped program is judged by the doors: test files may import more, and
//     packages that support tests are imported by tests alone.
//
// A new package is entered in the table in the commit that adds it. Nobody imports this package.
package archtest
