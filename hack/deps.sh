#!/usr/bin/env bash
# Installs what the kernel tests and the demo run besides Go: iptables in both userlands, nft, conntrack, iproute2's and util-linux's
# everyday tools, and Prometheus. It does nothing, quickly, where all of it is there, and starts no service.
#
# Usage: hack/deps.sh [demo|uml|vm]     "demo" leaves nft, conntrack and Prometheus out; "uml" adds user-mode Linux, a kernel that has
# IPVS; "vm" adds an emulator for a kernel that has everything.
set -euo pipefail

declare -A package=(
	[iptables-legacy]=iptables
	[iptables-nft]=iptables
	[nsenter]=util-linux
	[ip]=iproute2
	[nft]=nftables
	[conntrack]=conntrack
	[prometheus]=prometheus
	[promtool]=prometheus
)
# Fairlead itself needs none of these: tests look with them at what it did.
[[ ${1:-} == demo ]] && unset 'package[nft]' 'package[conntrack]' 'package[prometheus]' 'package[promtool]'
# modprobe loads the modules of that kernel; the compiler is for a library that it needs on some processors.
[[ ${1:-} == uml ]] && package+=([linux.uml]=user-mode-linux [modprobe]=kmod [gcc]=gcc [/usr/include/stdio.h]=libc6-dev)
[[ ${1:-} == vm ]] && package+=([qemu-system-x86_64]=qemu-system-x86 [modprobe]=kmod)

PATH=$PATH:/usr/sbin:/sbin
missing=()
for command in "${!package[@]}"; do
	command -v "$command" >/dev/null || [[ -f $command ]] || missing+=("${package[$command]}")
done
((${#missing[@]})) || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ((EUID != 0)); then
	echo "hack/deps.sh: missing: ${missing[*]}; run as root to install them" >&2
	exit 1
fi
if ! command -v apt-get >/dev/null; then
	echo "hack/deps.sh: missing: ${missing[*]}; there is no apt-get here, install them by hand" >&2
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
echo "hack/deps.sh: installing ${missing[*]}" >&2
install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
"${install[@]}" >&2 || { apt-get update -qq >&2 && "${install[@]}" >&2; }
# Nor is a machine that is rebooted to start it.
[[ " ${missing[*]} " != *' prometheus '* ]] || rm -f /etc/systemd/system/multi-user.target.wants/prometheus.service
