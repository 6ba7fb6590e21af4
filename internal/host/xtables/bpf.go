package xtables

import "fmt"

// SourceIsDestination matches packets whose source address is their destination address. It is a
// classic BPF program that loads a word of the source, copies it to X, loads the word of the
// destination and compares them: once for IPv4, four times for IPv6, with addresses at offsets 8
// and 24. The kernel needs xt_bpf (NeedBPF).
func SourceIsDestination(ipv6 bool) string {
	src, dst, words := 12, 16, 1
	if ipv6 {
		src, dst, words = 8, 24, 4
	}
	n := 4*words + 2
	prog := fmt.Sprintf("%d", n)
	for i := range words {
		toFail := n - 1 - (4*i + 4)
		prog += fmt.Sprintf(",32 0 0 %d,7 0 0 0,32 0 0 %d,29 0 %d 0", src+4*i, dst+4*i, toFail)
	}
	return fmt.Sprintf("-m bpf --bytecode %q", prog+",6 0 0 65535,6 0 0 0")
}
