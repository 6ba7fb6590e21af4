// Package archtest checks the architecture: which package may import which, and those rules of
// style that are cheap to check. It has no code, only tests that parse the sources of the module.
//
//	internal/**, cmd/** ─► go/parser ─► imports, names, file lengths ─► the table in rooms_test.go
//
// Invariants:
//
//  1. Every package of the module, except those of the end-to-end tests, is in the table. An import
//     that the table does not list is not allowed.
//  2. Only what is in the shipped program is checked: test files may import more, and packages that
//     support tests are imported by tests alone.
//
// A new package is added to the table in the commit that adds it. Nothing imports this package.
package archtest
