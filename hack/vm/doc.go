// Command vm runs one command on Debian's stock kernel, which has IPVS, nf_tables, both userlands
// of iptables, flow tables, SCTP and tunnels. The kernel runs in an emulated machine of
// qemu-system-x86 with two processors and needs no privileges. Package guest describes what the
// command sees and what the caller gets.
//
//	hack/vm/kernel ─► vmlinuz, modules ─┐
//	this binary, virtio and 9p ─► initramfs ─► qemu ─► root: the machine's files, read-only over 9p, below an in-memory layer
//
// hack/vm/run builds and starts it. Emulation (TCG) is 10 to 30 times slower than the machine and
// takes 20 s to boot, so programs are built outside and only run inside. KVM is used only with
// -accel=kvm: in nested machines it may open and then hang.
package main
