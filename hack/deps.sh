#!/usr/bin/env bash
# Knows every program that the kernel tests, the demo and the benchmark run besides Go, installs what is missing, and starts no
# service. It does nothing, quickly, where all of it is there.
#
# Usage: hack/deps.sh [demo|uml|vm]  without an argument what the benchmark runs; "demo" leaves out what only looks at what Fairlead
#                                    did; "uml" adds user-mode Linux, a kernel that has IPVS; "vm" an emulator for a kernel that has
#                                    everything.
#        hack/deps.sh path           what the kernel tests run; makes bin/path, a directory with a link to each program and to go, and
#                                    prints its name.
#
# The kernel tests run with bin/path as their PATH, so that a program that is not named here is missing on every machine.
set -euo pipefail
cd "$(dirname "$0")/.."

# Packages and what is run of them. A path is a file that must be there.
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
# Fairlead itself runs none of these: tests and the benchmark look with them at what it did.
looks='
	nftables    nft
	conntrack   conntrack
	ipset       ipset
'
# Tests alone make the image from Debian packages, and ask a Prometheus.
tests='
	apt         apt-get apt-config
	gpgv        gpgv
	dpkg        dpkg dpkg-deb
	prometheus  prometheus promtool
'
# The compiler is for a library that user-mode Linux needs on some processors.
uml='
	user-mode-linux linux.uml
	gcc             gcc
	libc6-dev       /usr/include/stdio.h
'
vm='
	qemu-system-x86 qemu-system-x86_64
'
case ${1:-} in
'') list=$everywhere$looks ;;
path) list=$everywhere$looks$tests ;;
demo) list=$everywhere ;;
uml) list=$everywhere$looks$uml ;;
vm) list=$everywhere$looks$vm ;;
*) echo "hack/deps.sh: want demo, uml, vm or path" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin
# missing prints the packages of which something is not there.
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
	# Debian starts what it installs unless policy-rc.d forbids it: forbid it while this runs, then put back what was there.
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
	# Nor is a machine that is rebooted to start it.
	[[ " $* " != *' prometheus '* ]] || rm -f /etc/systemd/system/multi-user.target.wants/prometheus.service
	# A package that lacks a program would be installed again and again, and the tests would tell less well.
	mapfile -t packages < <(missing)
	if ((${#packages[@]})); then
		echo "hack/deps.sh: installed, and still missing something of: ${packages[*]}" >&2
		exit 1
	fi
}

mapfile -t packages < <(missing)
((${#packages[@]} == 0)) || install_packages "${packages[@]}"
[[ ${1:-} == path ]] || exit 0

# Beside other runs: a link is made once, and then only changes if what it leads to is gone.
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
