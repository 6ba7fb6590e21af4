package xtables

import "testing"

func TestExchangeOfText(t *testing.T) {
	x := NewExchange("OURS-LONG-", "O-ABCDEF-")
	for in, want := range map[string]string{
		"*nat\n:OURS-LONG-A - [0:0]\n:KUBE-B - [0:0]\n":                    "*nat\n:O-ABCDEF-A - [0:0]\n:KUBE-B - [0:0]\n",
		"-A OURS-LONG-A -j OURS-LONG-B":                                    "-A O-ABCDEF-A -j O-ABCDEF-B",
		"-A PREROUTING -j O-ABCDEF-A":                                      "-A PREROUTING -j OURS-LONG-A",
		"-X OURS-LONG-A\n-D INPUT -g OURS-LONG-B\n":                        "-X O-ABCDEF-A\n-D INPUT -g O-ABCDEF-B\n",
		"-m set ! --match-set OURS-LONG-4-X dst,dst -j DROP":               "-m set ! --match-set O-ABCDEF-4-X dst,dst -j DROP",
		"-m recent --set --name OURS-LONG-X --rsource":                     "-m recent --set --name O-ABCDEF-X --rsource",
		"-i OURS-LONG-br0 -o O-ABCDEF-br1 -j OURS-LONG-A":                  "-i OURS-LONG-br0 -o O-ABCDEF-br1 -j O-ABCDEF-A",
		`-m comment --comment "OURS-LONG-x/O-ABCDEF-y:z" -j OURS-LONG-A`:   `-m comment --comment "OURS-LONG-x/O-ABCDEF-y:z" -j O-ABCDEF-A`,
		"-A XOURS-LONG-A -j OURS-LON -s 10.0.0.0/8":                        "-A XOURS-LONG-A -j OURS-LON -s 10.0.0.0/8",
		"-A OURS-LONG-A -j OURS-LONG-A -g O-ABCDEF-OURS-LONG-O-ABCDEF-end": "-A O-ABCDEF-A -j O-ABCDEF-A -g OURS-LONG-OURS-LONG-O-ABCDEF-end",
	} {
		if got := x.Text(in); got != want {
			t.Errorf("%q became\n%q, want\n%q", in, got, want)
		}
		if got := x.Text(x.Text(in)); got != in {
			t.Errorf("%q twice became\n%q", in, got)
		}
		if got := (Exchange{}).Text(in); got != in {
			t.Errorf("the zero Exchange made of %q\n%q", in, got)
		}
	}
}
