// Command vm runs one command on Debian's stock kernel, which has everything: IPVS, nf_tables, both userlands of iptables,
// flow tables, SCTP, tunnels. It runs in an emulated machine of qemu-system-x86 with two processors and needs no privilege.
// Package guest says what the command sees and what the caller gets.
//
//	hack/vm/kernel ─► vmlinuz, modules ─┐
//	this binary, virtio and 9p ─► initramfs ─► qemu ─► root: the machine's files, read-only over 9p, below a layer of memory
//
// hack/vm/run builds and starts it. The emulation (TCG) takes 10 to 30 times as long as the machine itself and 20 s to boot,
// so programs are built outside and only run inside. KVM is used if -accel=kvm asks for it and not otherwise: where it opens
// it may still hang, as in many a nested machine.
package main
