package ipvs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

// recorded is what Linux 6.1 printed.
const recorded = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr 
  -> 0A000002:20FB      Masq    70000  3          14        
  -> 0A000001:20FB      Masq    0      0          0         
SCTP  0A600002:0050 wrr persistent 1080000 FFFFFF00
UDP  0A600003:0035 mh ops 
TCP  [fd00:0096:0000:0000:0000:0000:0000:0001]:01BB sh persistent 500 80000000
  -> [fd01:0000:0000:0000:0000:0000:0000:0001]:20FB      Tunnel  2147483647 0          0         
  -> 0A000001:20FB      Tunnel  1      0          0         
IP_99  0A600001:0050 rr ops 
FWM  00000007 rr persistent 100 FFFFFFFF
  -> 0A000001:0050      Route   1      0          0         
`

func TestParseTable(t *testing.T) {
	got, err := parseTable(recorded)
	if err != nil {
		t.Fatal(err)
	}
	want := map[VirtualServer][]RealState{
		tcp("10.96.0.1:443"): {
			{RealServer: RealServer{Addr: ap("10.0.0.1:8443")}},
			{RealServer: RealServer{Addr: ap("10.0.0.2:8443"), Weight: 70000}, Active: 3, Inactive: 14},
		},
		{Protocol: unix.IPPROTO_SCTP, Addr: ap("10.96.0.2:80")}: nil,
		{Protocol: unix.IPPROTO_UDP, Addr: ap("10.96.0.3:53")}:  nil,
		tcp("[fd00:96::1]:443"): {
			{RealServer: RealServer{Addr: ap("10.0.0.1:8443"), Weight: 1, Method: Tunnel}},
			{RealServer: RealServer{Addr: ap("[fd01::1]:8443"), Weight: MaxWeight, Method: Tunnel}},
		},
		{Protocol: 99, Addr: ap("10.96.0.1:80")}: nil,
	}
	if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if empty, err := parseTable(strings.Join(strings.SplitAfter(recorded, "\n")[:3], "")); err != nil || len(empty) != 0 {
		t.Errorf("got %v, %v", empty, err)
	}
}

func TestParseTableRefuses(t *testing.T) {
	for name, change := range map[string][2]string{
		"nothing":             {recorded, ""},
		"no head":             {procVersion, "X"},
		"other columns":       {"Scheduler Flags", "Scheduler"},
		"other real columns":  {"ActiveConn InActConn", "ActiveConn"},
		"real server first":   {"TCP  0A600001:01BB rr \n", ""},
		"twice":               {"UDP  0A600003:0035", "SCTP  0A600002:0050"},
		"no scheduler":        {"0A600001:01BB rr", "0A600001:01BB"},
		"protocol":            {"TCP  0A600001", "tcp  0A600001"},
		"protocol number":     {"IP_99", "IP_256"},
		"address of 7 digits": {"0A600001:01BB", "A600001:01BB"},
		"no port":             {"0A600001:01BB", "0A600001"},
		"port of 5 digits":    {"0A600001:01BB", "0A600001:001BB"},
		"sign in an address":  {"0A600001:01BB", "+A600001:01BB"},
		"short IPv6":          {"[fd00:0096:0000:0000:0000:0000:0000:0001]", "[fd00:96::1]"},
		"IPv6 without [":      {"[fd00:0096:0000:0000:0000:0000:0000:0001]", "(fd00:0096:0000:0000:0000:0000:0000:0001]"},
		"IPv6 with letters":   {"[fd00:0096:0000:0000:0000:0000:0000:0001]", "[gd00:0096:0000:0000:0000:0000:0000:0001]"},
		"method":              {"Route", "Way"},
		"negative weight":     {"70000", "-1"},
		"large weight":        {"70000", "2147483648"},
		"columns":             {"3          14", "14"},
		"options":             {"persistent 1080000 FFFFFF00", "persistent 1080000"},
		"option":              {"mh ops", "mh opt"},
		"mask":                {"FFFFFF00", "FFFFFF0"},
		"mark":                {"00000007", "7"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(recorded, change[0], change[1], 1)
			if text == recorded {
				t.Fatal("nothing was changed")
			}
			if got, err := parseTable(text); err == nil {
				t.Errorf("got %v", got)
			}
		})
	}
}

// printTable writes a table as the kernel does.
func printTable(table map[VirtualServer][]RealState) string {
	addr := func(s string) string {
		a := ap(s)
		if a.Addr().Is4() {
			b := a.Addr().As4()
			return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[0], b[1], b[2], b[3], a.Port())
		}
		return fmt.Sprintf("[%s]:%04X", a.Addr().StringExpanded(), a.Port())
	}
	b := procVersion + "1.2.1 (size=4096)\n" + procServers + "\n" + procReals + "\n"
	for _, v := range slices.SortedFunc(maps.Keys(table), VirtualServer.Compare) {
		name := map[uint8]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[v.Protocol]
		if name == "" {
			name = fmt.Sprintf("IP_%d", v.Protocol)
		}
		b += fmt.Sprintf("%s  %s rr \n", name, addr(v.Addr.String()))
		for _, r := range table[v] {
			b += fmt.Sprintf("  -> %s      %-7v %-6d %-10d %-10d\n", addr(r.Addr.String()), r.Method, r.Weight, r.Active, r.Inactive)
		}
	}
	return b
}

// FuzzParseTable feeds text to the parser. What was understood must be understood again when it is
// written anew.
func FuzzParseTable(f *testing.F) {
	f.Add(recorded)
	f.Add(strings.ReplaceAll(recorded, "fd00:0096", "0000:0000"))
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseTable(text)
		if err != nil {
			return
		}
		again, err := parseTable(printTable(table))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(table) {
			t.Fatalf("got %v, %v; want %v", again, err, table)
		}
	})
}
