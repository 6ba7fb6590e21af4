package rulesim

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// deep returns input with jumps that are n chains deep.
func deep(n int) []string {
	var out []string
	for i := 2; i <= n; i++ {
		out = append(out, fmt.Sprintf(":C%d - [0:0]", i))
	}
	from := "OUTPUT"
	for i := 2; i <= n; i++ {
		to := fmt.Sprintf("C%d", i)
		out, from = append(out, "-A "+from+" -j "+to), to
	}
	return out
}

// restoreCases are inputs of one section each, and whether they must be refused. TestRealRefusals
// gives the same input to iptables: what one of the userlands refuses must be refused here. ours
// marks what is only refused here.
var restoreCases = []struct {
	name    string
	table   string
	lines   []string
	refused bool
	ours    bool
}{
	{name: "dnat in POSTROUTING", table: "nat", lines: []string{"-A POSTROUTING -p tcp -j DNAT --to-destination 1.1.1.1:80"}, refused: true},
	{name: "dnat in a chain reached from POSTROUTING", table: "nat", lines: []string{":X - [0:0]", "-A X -p tcp -j DNAT --to-destination 1.1.1.1:80", "-A POSTROUTING -j X"}, refused: true},
	{name: "dnat in a chain reached from nowhere", table: "nat", lines: []string{":X - [0:0]", "-A X -p tcp -j DNAT --to-destination 1.1.1.1:80"}},
	{name: "masquerade in PREROUTING", table: "nat", lines: []string{"-A PREROUTING -j MASQUERADE"}, refused: true},
	{name: "masquerade in filter", table: "filter", lines: []string{":X - [0:0]", "-A X -j MASQUERADE"}, refused: true},
	{name: "reject in nat", table: "nat", lines: []string{":X - [0:0]", "-A X -j REJECT"}, refused: true},
	{name: "drop in nat", table: "nat", lines: []string{":X - [0:0]", "-A X -j DROP"}, refused: true},
	{name: "-i in OUTPUT", table: "nat", lines: []string{"-A OUTPUT -i eth0 -j ACCEPT"}, refused: true},
	{name: "-o in PREROUTING", table: "nat", lines: []string{"-A PREROUTING -o eth0 -j ACCEPT"}, refused: true},
	{name: "-i in a chain reached from OUTPUT", table: "nat", lines: []string{":X - [0:0]", "-A X -i eth0 -j ACCEPT", "-A OUTPUT -j X"}},
	{name: "loop", table: "nat", lines: []string{":X - [0:0]", ":Y - [0:0]", "-A X -j Y", "-A Y -g X", "-A OUTPUT -j X"}, refused: true},
	{name: "loop reached from nowhere", table: "nat", lines: []string{":X - [0:0]", ":Y - [0:0]", "-A X -j Y", "-A Y -j X"}, refused: true, ours: true},
	{name: "16 chains deep", table: "nat", lines: deep(16)},
	{name: "17 chains deep", table: "nat", lines: deep(17), refused: true},
	{name: "jump to a missing chain", table: "nat", lines: []string{"-A OUTPUT -j NOPE"}, refused: true},
	{name: "jump to a chain declared later", table: "nat", lines: []string{":X - [0:0]", "-A X -j Y", ":Y - [0:0]"}, refused: true},
	{name: "jump to a built-in chain", table: "nat", lines: []string{"-A OUTPUT -j POSTROUTING"}, refused: true},
	{name: "goto a target", table: "nat", lines: []string{"-A OUTPUT -g ACCEPT"}, refused: true},
	{name: "jump with an option", table: "nat", lines: []string{":X - [0:0]", "-A OUTPUT -j X --random-fully"}, refused: true},
	{name: "two jumps", table: "nat", lines: []string{"-A OUTPUT -j ACCEPT -j RETURN"}, refused: true},
	{name: "jump and goto", table: "nat", lines: []string{":X - [0:0]", "-A OUTPUT -j ACCEPT -g X"}, refused: true},
	{name: "delete a chain with rules", table: "nat", lines: []string{":X - [0:0]", "-A X -j ACCEPT", "-X X"}, refused: true},
	{name: "delete a chain that is referred to", table: "nat", lines: []string{":X - [0:0]", "-A OUTPUT -j X", "-X X"}, refused: true},
	{name: "delete a missing chain", table: "nat", lines: []string{"-X NOPE"}, refused: true},
	{name: "flush a missing chain", table: "nat", lines: []string{"-F NOPE"}, refused: true},
	{name: "delete after flush", table: "nat", lines: []string{":X - [0:0]", ":Y - [0:0]", "-A X -j Y", "-F X", "-X Y", "-X X"}},
	{name: "declaring again empties", table: "nat", lines: []string{":X - [0:0]", "-A X -j ACCEPT", ":X - [0:0]", "-X X"}},
	{name: "declaring a built-in chain keeps its rules", table: "nat", lines: []string{"-A OUTPUT -j ACCEPT", ":OUTPUT ACCEPT [0:0]", "-D OUTPUT -j ACCEPT"}},
	{name: "name of 28 bytes", table: "nat", lines: []string{":abcdefghijklmnopqrstuvwxyz12 - [0:0]"}},
	{name: "name of 29 bytes", table: "nat", lines: []string{":abcdefghijklmnopqrstuvwxyz123 - [0:0]"}, refused: true},
	{name: "name begins with -", table: "nat", lines: []string{":-x - [0:0]"}, refused: true},
	{name: "name begins with !", table: "nat", lines: []string{":!x - [0:0]"}, refused: true},
	{name: "name of a verdict", table: "nat", lines: []string{":ACCEPT - [0:0]"}, refused: true},
	{name: "name of a target", table: "nat", lines: []string{":MARK - [0:0]"}, refused: true, ours: true},
	{name: "policy for a chain that is not built in", table: "nat", lines: []string{":X ACCEPT [0:0]"}, refused: true},
	{name: "no counters", table: "nat", lines: []string{":X -"}},
	{name: "port without protocol", table: "nat", lines: []string{"-A OUTPUT --dport 80"}, refused: true},
	{name: "ports in the wrong order", table: "nat", lines: []string{"-A OUTPUT -p tcp --dport 90:80"}, refused: true},
	{name: "port 65536", table: "nat", lines: []string{"-A OUTPUT -p tcp --dport 65536"}, refused: true},
	{name: "-m tcp for udp", table: "nat", lines: []string{"-A OUTPUT -p udp -m tcp --dport 80"}, refused: true},
	{name: "not all protocols", table: "nat", lines: []string{"-A OUTPUT ! -p all"}, refused: true},
	{name: "dnat port without protocol", table: "nat", lines: []string{"-A OUTPUT -j DNAT --to-destination 1.1.1.1:80"}, refused: true},
	{name: "dnat port of a protocol that has none", table: "nat", lines: []string{"-A OUTPUT -p icmp -j DNAT --to-destination 1.1.1.1:80"}, refused: true, ours: true},
	{name: "dnat port 0", table: "nat", lines: []string{"-A OUTPUT -p tcp -j DNAT --to-destination 1.1.1.1:0"}, refused: true, ours: true},
	{name: "dnat without destination", table: "nat", lines: []string{"-A OUTPUT -p tcp -j DNAT"}, refused: true},
	{name: "dnat to the other family", table: "nat", lines: []string{"-A OUTPUT -p tcp -j DNAT --to-destination [::1]:80"}, refused: true},
	{name: "masquerade to ports", table: "nat", lines: []string{"-A POSTROUTING -j MASQUERADE --to-ports 80"}, refused: true},
	{name: "-d twice", table: "nat", lines: []string{"-A OUTPUT -d 1.1.1.1 -d 2.2.2.2"}, refused: true},
	{name: "prefix too long", table: "nat", lines: []string{"-A OUTPUT -s 1.1.1.1/33"}, refused: true},
	{name: "address of the other family", table: "nat", lines: []string{"-A OUTPUT -s ::1"}, refused: true},
	{name: "interface name of 16 bytes", table: "nat", lines: []string{"-A PREROUTING -i abcdefghijklmnop"}, refused: true},
	{name: "interface name of 15 bytes and +", table: "nat", lines: []string{"-A PREROUTING -i abcdefghijklmno+"}, refused: true},
	{name: "interface name of 14 bytes and +", table: "nat", lines: []string{"-A PREROUTING -i abcdefghijklmn+"}},
	{name: "comment of 255 bytes", table: "nat", lines: []string{"-A OUTPUT -m comment --comment " + strings.Repeat("a", 255)}},
	{name: "comment of 256 bytes is cut", table: "nat", lines: []string{"-A OUTPUT -m comment --comment " + strings.Repeat("a", 256)}, refused: true, ours: true},
	{name: "comment missing", table: "nat", lines: []string{"-A OUTPUT -m comment"}, refused: true},
	{name: "comment with !", table: "nat", lines: []string{"-A OUTPUT -m comment ! --comment x"}, refused: true},
	{name: "probability 0", table: "nat", lines: []string{"-A OUTPUT -m statistic --mode random --probability 0"}},
	{name: "probability 1", table: "nat", lines: []string{"-A OUTPUT -m statistic --mode random --probability 1"}},
	{name: "probability above 1", table: "nat", lines: []string{"-A OUTPUT -m statistic --mode random --probability 1.1"}, refused: true},
	{name: "statistic without mode", table: "nat", lines: []string{"-A OUTPUT -m statistic --probability 0.5"}, refused: true},
	{name: "statistic without probability", table: "nat", lines: []string{"-A OUTPUT -m statistic --mode random"}, refused: true},
	{name: "recent without command", table: "nat", lines: []string{"-A OUTPUT -m recent --name x"}, refused: true},
	{name: "recent with two commands", table: "nat", lines: []string{"-A OUTPUT -m recent --set --rcheck --name x"}, refused: true},
	{name: "recent set with seconds", table: "nat", lines: []string{"-A OUTPUT -m recent --set --seconds 5 --name x"}, refused: true},
	{name: "recent reap without seconds", table: "nat", lines: []string{"-A OUTPUT -m recent --rcheck --reap --name x"}, refused: true},
	{name: "recent with 0 seconds", table: "nat", lines: []string{"-A OUTPUT -m recent --rcheck --seconds 0 --name x"}, refused: true},
	{name: "recent name with slash", table: "nat", lines: []string{"-A OUTPUT -m recent --set --name a/b"}, refused: true},
	{name: "recent without name", table: "nat", lines: []string{"-A OUTPUT -m recent --set"}},
	{name: "recent name of 200 bytes is cut", table: "nat", lines: []string{"-A OUTPUT -m recent --set --name " + strings.Repeat("a", 200)}, refused: true, ours: true},
	{name: "bpf without return", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "1,32 0 0 12"`}, refused: true},
	{name: "bpf jumps out", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "2,29 5 0 0,6 0 0 0"`}, refused: true},
	{name: "bpf jumps just out", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "2,29 0 1 0,6 0 0 0"`}, refused: true},
	{name: "bpf jumps to the last", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "3,29 0 1 0,6 0 0 1,6 0 0 0"`}},
	{name: "bpf with wrong count", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "3,29 0 0 0,6 0 0 0"`}, refused: true},
	{name: "bpf with unknown opcode", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "2,255 0 0 9,6 0 0 0"`}, refused: true},
	{name: "bpf with 65 instructions", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "65` + strings.Repeat(",6 0 0 0", 65) + `"`}, refused: true},
	{name: "bpf with 64 instructions", table: "nat", lines: []string{`-A OUTPUT -m bpf --bytecode "64` + strings.Repeat(",6 0 0 0", 64) + `"`}},
	{name: "mark out of range", table: "nat", lines: []string{"-A OUTPUT -m mark --mark 0x1ffffffff"}, refused: true},
	{name: "mark missing", table: "nat", lines: []string{"-A OUTPUT -m mark"}, refused: true},
	{name: "MARK without option", table: "nat", lines: []string{"-A OUTPUT -j MARK"}, refused: true},
	{name: "MARK with two options", table: "nat", lines: []string{"-A OUTPUT -j MARK --set-xmark 1 --set-xmark 2"}, refused: true},
	{name: "delete a missing rule", table: "nat", lines: []string{"-D OUTPUT -j ACCEPT"}, refused: true},
	{name: "insert behind the end", table: "nat", lines: []string{"-I OUTPUT 3 -j ACCEPT"}, refused: true},
	{name: "insert at the end", table: "nat", lines: []string{"-A OUTPUT -j ACCEPT", "-I OUTPUT 2 -j ACCEPT"}},
	{name: "insert at 0", table: "nat", lines: []string{"-I OUTPUT 0 -j ACCEPT"}, refused: true},
	{name: "replace a rule of the same section", table: "nat", lines: []string{"-A OUTPUT -j ACCEPT", "-R OUTPUT 1 -j RETURN"}, refused: true},
	{name: "addrtype without option", table: "nat", lines: []string{"-A OUTPUT -m addrtype"}, refused: true},
	{name: "conntrack without option", table: "nat", lines: []string{"-A OUTPUT -m conntrack"}, refused: true},
	{name: "ctstate in lower case", table: "nat", lines: []string{"-A OUTPUT -m conntrack --ctstate new"}},
	{name: "ctstate unknown", table: "nat", lines: []string{"-A OUTPUT -m conntrack --ctstate FOO"}, refused: true},
	{name: "tcp-reset for all protocols", table: "filter", lines: []string{"-A INPUT -j REJECT --reject-with tcp-reset"}, refused: true},
	{name: "reject type of the other family", table: "filter", lines: []string{"-A INPUT -j REJECT --reject-with icmp6-port-unreachable"}, refused: true},
	{name: "! before -j", table: "nat", lines: []string{"-A OUTPUT ! -j ACCEPT"}, refused: true},
	{name: "nothing after !", table: "nat", lines: []string{"-A OUTPUT -j ACCEPT !"}, refused: true},
	{name: "stray word", table: "nat", lines: []string{"-A OUTPUT foo -j ACCEPT"}, refused: true},
	{name: "unknown match", table: "nat", lines: []string{"-A OUTPUT -m nonesuch -j ACCEPT"}, refused: true},
	{name: "a match not known here", table: "nat", lines: []string{"-A OUTPUT -p tcp -m multiport --dports 1,2 -j ACCEPT"}, refused: true, ours: true},
	{name: "unknown command", table: "nat", lines: []string{"-Q OUTPUT"}, refused: true},
}

func section(table string, lines []string) string {
	return "*" + table + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
}

func TestRestoreRefusals(t *testing.T) {
	for _, c := range restoreCases {
		t.Run(c.name, func(t *testing.T) {
			rs := New(fwd.IPv4)
			before := rs.Save()
			err := rs.Restore(section(c.table, c.lines))
			if (err != nil) != c.refused {
				t.Fatalf("refused: %v, want %v", err, c.refused)
			}
			if err != nil && rs.Save() != before {
				t.Errorf("a refused section changed the rules:\n%s", cmp.Diff(before, rs.Save()))
			}
		})
	}
}

func TestRestoreFrame(t *testing.T) {
	for name, text := range map[string]string{
		"no table":            "-A OUTPUT -j ACCEPT\n",
		"unknown table":       "*raw\nCOMMIT\n",
		"COMMIT missing":      "*nat\n-A OUTPUT -j ACCEPT\n",
		"COMMIT before table": "*nat\n*filter\nCOMMIT\n",
		"quote not closed":    "*nat\n-A OUTPUT -m comment --comment \"x\nCOMMIT\n",
		"line too long":       "*nat\n# " + strings.Repeat("x", maxLine) + "\nCOMMIT\n",
		"command alone":       "*nat\n-A\nCOMMIT\n",
		"bad counters":        "*nat\n:X - [0:x]\nCOMMIT\n",
	} {
		if err := New(fwd.IPv4).Restore(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRestoreKeepsEarlierSections(t *testing.T) {
	rs := New(fwd.IPv4)
	err := rs.Restore("*filter\n:X - [0:0]\n-A X -j DROP\nCOMMIT\n*nat\n-A OUTPUT -j NOPE\nCOMMIT\n")
	if err == nil || !strings.Contains(err.Error(), "line 6") {
		t.Fatalf("got %v, want an error in line 6", err)
	}
	if diff := cmp.Diff([]string{"-j DROP"}, rs.Rules("filter", "X")); diff != "" {
		t.Errorf("the section before the error: %s", diff)
	}
	if err := rs.Restore("*filter\n:INPUT DROP [0:0]\n:X - [0:0]\n-I X -j ACCEPT\n-F X\n-X X\nCOMMIT\n"); err != nil {
		t.Fatal(err)
	}
	if got, want := rs.Save("filter"), "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"; got != want {
		t.Errorf("got %s", got)
	}
}

// saveInput contains every match, target and option, not spelled as iptables-save prints them.
var saveInput = map[fwd.Family]string{
	fwd.IPv4: `*mangle
-A PREROUTING -j MARK --set-xmark 16
-A PREROUTING -j MARK --set-xmark 0/010
COMMIT
*nat
:C - [0:0]
:A-B - [0:0]
-A PREROUTING -d 10.96.0.1 -p tcp --dport 80:90 -m comment --comment "hello world" -j A-B
-A PREROUTING -d 10.96.0.1/8 -p 6 -m tcp --dport 80 -m comment --comment a/b:c,d-e_f.g -g C
-A PREROUTING -m comment --comment plain-word_1 --protocol udp --destination-port 53 --src 10.0.0.0/255.255.0.0
-A PREROUTING -m comment --comment "it's" -p tcp
-A PREROUTING -m addrtype --dst-type LOCAL ! --src-type LOCAL -j C
-A PREROUTING -m addrtype ! --dst-type LOCAL -m mark ! --mark 0x40/0x40 -m mark --mark 5 -j RETURN
-A A-B -m statistic --mode random --probability 0.3333333333 -j C
-A A-B -m statistic --mode random ! --probability 0.5 -j C
-A A-B -m statistic --mode random --probability 1e-3
-A A-B -m recent --rcheck --seconds 10 --reap --name X
-A A-B -m recent --set --name X --rsource
-A A-B -m recent ! --update --name Y --mask 255.255.255.0
-A A-B -p tcp -m recent --set --name X -m recent --rcheck --name Z -j DNAT --to-destination 10.0.0.1
-A C -p udp -m comment --comment "q\"uote\\s" -j DNAT --to-destination 10.0.0.1:80
-A C ! -p udp ! -s 1.2.3.4/16 -i eth+ ! -o lo -m conntrack ! --ctstate NEW,DNAT,INVALID,RELATED,ESTABLISHED,SNAT -j ACCEPT
-A POSTROUTING -m bpf --bytecode "4, 32 0 0 12, 29 0 1 0, 6 0 0 1, 6 0 0 0" -j MASQUERADE --random-fully
-A POSTROUTING -p sctp --dport 5 ! --sport 3 -j MASQUERADE --random
COMMIT
*filter
:FORWARD DROP [0:0]
-A INPUT -j REJECT
-A INPUT -p tcp -m tcp ! --dport 5 -j REJECT --reject-with tcp-reset
-A INPUT -p icmp -j DROP
-A FORWARD -p 50 -s 0.0.0.0/0
-A FORWARD -i +
-A FORWARD -p 200 -j RETURN
COMMIT
`,
	fwd.IPv6: `*nat
:C - [0:0]
-A PREROUTING -d fd00:96::1 -p tcp --dport 80 -m recent --rcheck --seconds 10 --reap --name X -j C
-A C -s FD00:1::1/64 -p tcp -j DNAT --to-destination [fd00::1]:80
-A C -p tcp -j DNAT --to-destination fd00:0::1
-A C -m recent --set --name Y --mask ffff:ffff:: --rsource
COMMIT
*filter
-A INPUT -j REJECT
-A INPUT -p icmpv6 -j ACCEPT
-A INPUT -s ::/0 -j REJECT --reject-with icmp6-adm-prohibited
COMMIT
`,
}

func TestSaveIsStable(t *testing.T) {
	for _, f := range fwd.Families {
		rs, err := Parse(f, saveInput[f])
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(f, rs.Save())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rs.Save(), again.Save()); diff != "" {
			t.Errorf("%s: saving, restoring and saving differs (-first +second):\n%s", f, diff)
		}
	}
}

// inUserNamespace runs a shell script with iptables in a user namespace. If that is not possible it
// skips the test, or fails it if kernel tests were requested.
func inUserNamespace(t *testing.T, script string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("runs iptables")
	}
	if err := exec.Command("unshare", "-Urn", "sh", "-ec", "iptables-legacy -t nat -S; iptables-nft -t nat -S").Run(); err != nil {
		const why = "needs user namespaces and iptables in both userlands: %v"
		if os.Getenv(hosttest.Env) == "1" {
			t.Fatalf(why, err)
		}
		t.Skipf(why, err)
	}
	cmd := exec.Command("unshare", "-Urn", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "XTABLES_LOCKFILE="+t.TempDir()+"/lock")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestRealRefusals gives the input of restoreCases to both userlands.
func TestRealRefusals(t *testing.T) {
	var b strings.Builder
	for i, c := range restoreCases {
		for _, v := range []string{"legacy", "nft"} {
			fmt.Fprintf(&b, "iptables-%s-restore --noflush >/dev/null 2>&1 <<'EOF_%d' && echo ok || echo refused\n%sEOF_%d\n", v, i, section(c.table, c.lines), i)
			fmt.Fprintf(&b, "printf '*%s\\nCOMMIT\\n' | iptables-%s-restore\n", c.table, v)
		}
	}
	got := strings.Fields(inUserNamespace(t, b.String()))
	if len(got) != 2*len(restoreCases) {
		t.Fatalf("%d answers to %d questions: %q", len(got), 2*len(restoreCases), got)
	}
	for i, c := range restoreCases {
		refused := got[2*i] == "refused" || got[2*i+1] == "refused"
		if refused != (c.refused && !c.ours) {
			t.Errorf("%s: legacy %s, nft %s; the table says refused=%v ours=%v", c.name, got[2*i], got[2*i+1], c.refused, c.ours)
		}
	}
}

// TestRealSave compares Save with what both userlands save.
func TestRealSave(t *testing.T) {
	for _, f := range fwd.Families {
		rs, err := Parse(f, saveInput[f])
		if err != nil {
			t.Fatal(err)
		}
		tool := map[fwd.Family]string{fwd.IPv4: "iptables", fwd.IPv6: "ip6tables"}[f]
		for _, v := range []string{"legacy", "nft"} {
			for table := range hooks {
				if !strings.Contains(saveInput[f], "*"+table) {
					continue
				}
				script := fmt.Sprintf("%[1]s-%[2]s-restore <<'EOF' && %[1]s-%[2]s-save -t %[3]s | grep -v '^#'\n%[4]sEOF\n", tool, v, table, saveInput[f])
				if diff := cmp.Diff(inUserNamespace(t, script), rs.Save(table)); diff != "" {
					t.Errorf("%s %s %s (-real +simulated):\n%s", tool, v, table, diff)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range restoreCases {
		f.Add(section(c.table, c.lines))
	}
	for _, text := range saveInput {
		f.Add(text)
	}
	for _, r := range realities {
		f.Add(r.input)
	}
	f.Add(section("mangle", []string{"-A INPUT -m set ! --match-set A-B dst,src -m ipvs ! --ipvs", "-A INPUT -m ipvs --vdir REPLY ! --vmethod GATE"}))
	f.Fuzz(func(t *testing.T, text string) {
		for _, fam := range fwd.Families {
			rs := New(fam)
			if err := rs.Restore(text); err != nil {
				if strings.Count(text, "*") == 1 && rs.Save() != New(fam).Save() {
					t.Fatalf("refused, but written:\n%s", rs.Save())
				}
				continue
			}
			again, err := Parse(fam, rs.Save())
			if err != nil {
				t.Fatalf("what was saved is refused: %v\n%s", err, rs.Save())
			}
			if again.Save() != rs.Save() {
				t.Fatalf("not stable:\n%s\n%s", rs.Save(), again.Save())
			}
		}
	})
}
