// Package ipvssim says for tests what a host does with packets that is programmed with the text that ipvs.Render prints.
//
//	text ─► Parse ─► Machine: rules (rulesim), sets, virtual servers, local addresses ─► Run(Packet) ─► every possible Result
//
// Differences is the list of what mode ipvs does otherwise than the forwarding table says, and Expect applies it. It is
// the only place in the code with such exceptions; docs/ipvs.md has the same list.
//
// The package knows the tools' input as far as Render prints it and refuses everything else. Only tests import it. It shares
// no code with the renderer, so that an error must be made twice to go unseen.
package ipvssim
