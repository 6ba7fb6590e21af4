#!/usr/bin/env bash
# Installs the programs that kernel tests, demo and benchmark run, except Go. It starts no service, and returns quickly if
# everything is installed.
#
# Usage: hack/deps.sh [demo|uml|vm|cluster]
#                                    programs of the benchmark; "demo" omits those that only inspect Fairlead's results; "uml"
#                                    adds user-mode Linux, a kernel with IPVS; "vm" adds an emulator for other kernels;
#                                    "cluster" adds the container runtime of real nodes.
#        hack/deps.sh path           programs of the kernel tests; makes bin/path, a directory with links to these programs and to
#                                    go, and prints its name.
#
# The kernel tests run with bin/path as their PATH, so that a program missing in this file is missing on every machine.
set -euo pipefail
cd "$(dirname "$0")/.."

# Packages and their programs. A path is a file that must exist.
everywhere='
	iptables    iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore
	iptables    iptables-legacy iptables-legacy-save iptables-legacy-restore ip6tables-legacy ip6tables-legacy-save ip6tables-legacy-restore
	iptables    iptables-nft iptables-nft-save iptables-nft-restore ip6tables-nft ip6tables-nft-save ip6tables-nft-restore
	iproute2    ip
	util-linux  nsenter setpriv unshare
	mount       mount umount
	procps      sysctl
	kmod        modprobe
	bash        bash
	dash        sh
	coreutils   cat chmod chroot cp cut date dirname env head id install ln ls mkdir mktemp mv rm seq sha256sum sleep sort tail touch tr uname
	findutils   find
	grep        grep
	sed         sed
	tar         tar
'
# Fairlead does not run these; tests and the benchmark inspect its results with them.
inspect='
	nftables    nft
	conntrack   conntrack
	ipset       ipset
'
# Only tests make the image from Debian packages and run a Prometheus.
tests='
	apt         apt-get apt-config
	gpgv        gpgv
	dpkg        dpkg dpkg-deb
	prometheus  prometheus promtool
'
# The compiler builds a library that user-mode Linux needs on some processors.
uml='
	user-mode-linux linux.uml
	gcc             gcc
	libc6-dev       /usr/include/stdio.h
'
vm='
	qemu-system-x86 qemu-system-x86_64
'
# A node with real kubelets needs a runtime and the plugins that connect pods.
cluster='
	runc                       runc
	containernetworking-plugins /usr/lib/cni/ptp /usr/lib/cni/portmap /usr/lib/cni/host-local /usr/lib/cni/loopback
'
case ${1:-} in
'') list=$everywhere$inspect ;;
path) list=$everywhere$inspect$tests ;;
demo) list=$everywhere ;;
uml) list=$everywhere$inspect$uml ;;
vm) list=$everywhere$inspect$vm ;;
cluster) list=$everywhere$inspect$cluster ;;
*) echo "hack/deps.sh: want demo, uml, vm, cluster or path" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin
# missing prints the packages with missing programs.
missing() {
	local package words word
	while read -r package words; do
		for word in $words; do
			[[ $word == /* && -f $word ]] || type -P "$word" >/dev/null || echo "$package"
		done
	done <<<"$list" | sort -u
}

install_packages() {
	if ((EUID != 0)); then
		echo "hack/deps.sh: missing: $*; run as root to install them" >&2
		exit 1
	fi
	if ! type -P apt-get >/dev/null; then
		echo "hack/deps.sh: missing: $*; there is no apt-get here, install them by hand" >&2
		exit 1
	fi
	# Debian starts installed services unless policy-rc.d forbids it. Forbid it while this runs, then restore the old file.
	policy=/usr/sbin/policy-rc.d
	if [[ -e $policy ]]; then
		saved=$(mktemp)
		cp -p "$policy" "$saved"
		trap 'cp -p "$saved" "$policy"; rm -f "$saved"' EXIT
	else
		trap 'rm -f "$policy"' EXIT
	fi
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"

	export DEBIAN_FRONTEND=noninteractive
	echo "hack/deps.sh: installing $*" >&2
	local command=(apt-get install -y -qq --no-install-recommends "$@")
	"${command[@]}" >&2 || { apt-get update -qq >&2 && "${command[@]}" >&2; }
	# Do not start it after a reboot either.
	[[ " $* " != *' prometheus '* ]] || rm -f /etc/systemd/system/multi-user.target.wants/prometheus.service
	# Without this check a package that lacks a program would be installed every time, and tests would fail less clearly.
	mapfile -t packages < <(missing)
	if ((${#packages[@]})); then
		echo "hack/deps.sh: still missing programs after installing: ${packages[*]}" >&2
		exit 1
	fi
}

mapfile -t packages < <(missing)
((${#packages[@]} == 0)) || install_packages "${packages[@]}"
[[ ${1:-} == path ]] || exit 0

# Other runs may use the directory: links change only if their target is gone.
directory=$PWD/bin/path
mkdir -p "$directory"
declare -A named=([go]=1)
while read -r _ words; do
	for word in $words; do
		named[$word]=1
	done
done <<<"$list"
for program in "${!named[@]}"; do
	[[ -x $directory/$program ]] || ln -sfn "$(type -P "$program")" "$directory/$program"
done
for link in "$directory"/*; do
	[[ -n ${named[${link##*/}]:-} ]] || rm -f "$link"
done
echo "$directory"
