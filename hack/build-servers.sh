#!/usr/bin/env bash
# Builds the Kubernetes servers that the tests and benchmarks run, pinned by e2e/tools/go.mod, into a cache directory that
# is named after that pin, and prints the directory. What is there already is not built again.
#
# Usage: hack/build-servers.sh [kube-apiserver] [kube-proxy]     without arguments: both
set -euo pipefail

cd "$(dirname "$0")/../e2e/tools"
# Flags that are meant for the caller's module do not fit this one.
export GOFLAGS= GOWORK=off
hash=$(cat go.mod go.sum | sha256sum | cut -c1-12)
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/tools-$hash
mkdir -p "$dir"

(($#)) || set -- kube-apiserver kube-proxy
missing=()
for server in "$@"; do
	case $server in
	kube-apiserver | kube-proxy) [[ -x $dir/$server ]] || missing+=("$server") ;;
	*) echo "hack/build-servers.sh: unknown server $server" >&2; exit 2 ;;
	esac
done

if ((${#missing[@]})); then
	echo "hack/build-servers.sh: building ${missing[*]} $version into $dir (minutes, once)" >&2
	# A build that is interrupted must not leave half a binary under the final name.
	build=$(mktemp -d "$dir/build.XXXXXX")
	trap 'rm -rf "$build"' EXIT
	IFS=. read -r major minor _ <<<"${version#v}"
	pkg=k8s.io/component-base/version
	CGO_ENABLED=0 go build -trimpath -o "$build/" \
		-ldflags "-s -w -X $pkg.gitVersion=$version -X $pkg.gitMajor=$major -X $pkg.gitMinor=$minor" \
		"${missing[@]/#/k8s.io/kubernetes/cmd/}"
	mv "$build"/kube-* "$dir/"
fi
echo "$dir"
