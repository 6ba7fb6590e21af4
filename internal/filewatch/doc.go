// Package filewatch reports changes of a file or a directory: writes in place, renames, and swaps
// of symbolic links, which is how the kubelet updates a ConfigMap volume. It may be imported by
// config and kube. It is tested with real directories.
package filewatch
