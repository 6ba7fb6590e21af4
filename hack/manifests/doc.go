// Command manifests prints the objects that a kustomize directory or a Helm chart makes, as YAML, with the libraries of
// these tools and without the tools:
//
//	manifests kustomize DIRECTORY [COMPONENT...]
//	manifests chart DIRECTORY [VALUES...]
//
// COMPONENT is the directory of a kustomize component that is added to what DIRECTORY makes; VALUES is a file, as with
// "helm template --values". The chart is rendered as release "fairlead" in namespace kube-system, and a value that a template
// reads and nobody gives is an error. Other errors are those of the libraries: values that the chart's schema refuses, a
// patch that does not fit.
//
// It is a module of its own, so that Fairlead's has none of its dependencies. Of Helm it has the libraries alone: the
// command-line part is larger than all the rest. It imports nothing of Fairlead's.
//
// Its tests compare what is rendered with the golden files in manifests/testdata, each of which begins with the words to
// render it; "make manifests" writes them. The tests of package manifests read them, and those of package e2e give them to a real
// API server.
package main
