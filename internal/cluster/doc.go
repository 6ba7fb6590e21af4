// Package cluster holds what Fairlead keeps of the Kubernetes API: small values, compared by Equal,
// for Services, EndpointSlices and the node, and the Store that holds them and tracks which
// Services are dirty.
//
//	kube (informers, files) ─► Store.Set…/Delete… ─► dirty Service names ─► Store.TakeDirty ─► compile
//
// Invariants:
//
//  1. Setting an object to what it already is marks nothing dirty.
//  2. TakeDirty returns everything that is dirty, once, sorted.
//  3. Values are immutable once they are in the Store; a caller that wants a change sets a new
//     value.
//
// Conversion from API objects, with all their nil and malformed fields, happens in package kube;
// values here are valid: addresses are unmapped and of the family that they stand for, prefixes are
// masked, ports are not zero where a zero has no meaning. Names, protocols and address families are
// those of package fwd. A Store belongs to one goroutine.
package cluster
