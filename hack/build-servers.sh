#!/usr/bin/env bash
# Builds the servers for tests and benchmarks, with the versions in e2e/tools/go.mod, into a cache directory named after these
# versions, and prints the directory. Existing binaries are not built again. etcd has the version with which Kubernetes is
# released: with an older one the API server turns off some features, such as streamed lists.
#
# Usage: hack/build-servers.sh [etcd] [kube-apiserver] [kube-proxy]     default: all
set -euo pipefail

cd "$(dirname "$0")/../e2e/tools"
# The caller's flags are for another module.
export GOFLAGS= GOWORK=off
hash=$(cat go.mod go.sum | sha256sum | cut -c1-12)
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/tools-$hash
mkdir -p "$dir"

(($#)) || set -- etcd kube-apiserver kube-proxy
missing=()
for server in "$@"; do
	case $server in
	etcd | kube-apiserver | kube-proxy) [[ -x $dir/$server ]] || missing+=("$server") ;;
	*) echo "hack/build-servers.sh: unknown server $server" >&2; exit 2 ;;
	esac
done

if ((${#missing[@]})); then
	echo "hack/build-servers.sh: building ${missing[*]} of Kubernetes $version into $dir (minutes, once)" >&2
	# An interrupted build must not leave an incomplete binary under the final name.
	build=$(mktemp -d "$dir/build.XXXXXX")
	trap 'rm -rf "$build"' EXIT
	IFS=. read -r major minor _ <<<"${version#v}"
	pkg=k8s.io/component-base/version
	flags="-s -w -X $pkg.gitVersion=$version -X $pkg.gitMajor=$major -X $pkg.gitMinor=$minor"
	for server in "${missing[@]}"; do
		package=k8s.io/kubernetes/cmd/$server
		[[ $server != etcd ]] || package=go.etcd.io/etcd/server/v3
		CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$build/$server" "$package"
	done
	mv "$build"/* "$dir/"
fi
echo "$dir"
