// Command manifests prints the objects of a kustomize directory or a Helm chart as YAML. It uses
// the libraries of these tools, not the tools:
//
//	manifests kustomize DIRECTORY [COMPONENT...]
//	manifests chart DIRECTORY [VALUES...]
//
// COMPONENT is the directory of a kustomize component to add to DIRECTORY; VALUES is a file, as
// with "helm template --values". The chart is rendered as release "fairlead" in namespace
// kube-system. A value that a template reads but that is not set is an error; other errors come
// from the libraries, such as values that the chart's schema rejects or a patch that does not
// apply.
//
// It is a separate module, so that Fairlead's module does not have its dependencies. It uses only
// Helm's libraries, because Helm's command line is larger than everything else. It imports no
// package of Fairlead.
//
// Its tests compare the output with the golden files in manifests/testdata, whose first line is the
// command that renders them; "make manifests" writes them. The tests of package manifests read
// these files, and those of package e2e apply them to a real API server.
package main
