#!/usr/bin/env bash
# Builds the programs of other projects that tests, benchmarks and "make conformance" run, pinned by
# the modules in e2e/tools, into a cache directory that is named after these pins, and prints the
# directory. A program that is already there is not built again. etcd is the version that Kubernetes
# is released with: with an older one the API server lacks some features, such as streamed lists.
#
# Usage: hack/build-servers.sh [PROGRAM...]     without arguments: etcd kube-apiserver kube-proxy
set -euo pipefail

cd "$(dirname "$0")/../e2e/tools"
# Flags that are meant for the caller's module do not fit these.
export GOFLAGS= GOWORK=off CGO_ENABLED=0
hash=$(cat {.,balancer,containerd,coredns}/go.{mod,sum} balancer/*.go | sha256sum | cut -c1-12)
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/tools-$hash
mkdir -p "$dir"

# build NAME OUTPUT
build() {
	local name=$1 out=$2 pkg=k8s.io/component-base/version major minor flags='-s -w'
	IFS=. read -r major minor _ <<<"${version#v}"
	local kubernetes="$flags -X $pkg.gitVersion=$version -X $pkg.gitMajor=$major -X $pkg.gitMinor=$minor"
	case $name in
	kube-* | kubectl | kubelet) go build -trimpath -ldflags "$kubernetes" -o "$out" "k8s.io/kubernetes/cmd/$name" ;;
	etcd) go build -trimpath -ldflags "$flags" -o "$out" go.etcd.io/etcd/server/v3 ;;
	ginkgo) go build -trimpath -ldflags "$flags" -o "$out" github.com/onsi/ginkgo/v2/ginkgo ;;
	agnhost | regression-issue-74839) go build -trimpath -ldflags "$flags" -o "$out" "k8s.io/kubernetes/test/images/$name" ;;
	e2e.test) go test -c -trimpath -ldflags "$kubernetes" -o "$out" k8s.io/kubernetes/test/e2e ;;
	containerd | containerd-shim-runc-v2 | ctr)
		go -C containerd build -trimpath -ldflags "$flags" -tags no_btrfs,no_devmapper,no_zfs -o "$out" "github.com/containerd/containerd/v2/cmd/$name"
		;;
	balancer) go -C balancer build -trimpath -ldflags "$flags" -o "$out" . ;;
	coredns) go -C coredns build -trimpath -ldflags "$flags" -o "$out" github.com/coredns/coredns ;;
	*) echo "hack/build-servers.sh: unknown program $name" >&2; return 2 ;;
	esac
}

(($#)) || set -- etcd kube-apiserver kube-proxy
missing=()
for name; do
	[[ -x $dir/$name ]] || missing+=("$name")
done

if ((${#missing[@]})); then
	echo "hack/build-servers.sh: building ${missing[*]} for Kubernetes $version in $dir (minutes, once)" >&2
	# A build that is interrupted must not leave half a binary under the final name.
	build=$(mktemp -d "$dir/build.XXXXXX")
	trap 'rm -rf "$build"' EXIT
	for name in "${missing[@]}"; do
		build "$name" "$build/$name"
		mv "$build/$name" "$dir/"
	done
fi
echo "$dir"
