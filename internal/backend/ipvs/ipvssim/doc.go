// Package ipvssim simulates, for tests, a host that is programmed with the output of ipvs.Render.
//
//	text ─► Parse ─► Machine: rules (rulesim), sets, virtual servers, local addresses ─► Run(Packet) ─► every possible Result
//
// differences_test.go lists how mode ipvs differs from the forwarding table, and Expect applies the
// list to a packet. This is the only place in the code with such exceptions; docs/ipvs.md has the
// same list.
//
// The package knows only the tools' input that Render prints, and refuses everything else. It
// shares no code with the renderer, so that an error must be made twice to go unnoticed. Only tests
// import it.
package ipvssim
