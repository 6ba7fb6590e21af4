package compile_test

import (
	"fmt"
	"strings"
	"testing"
)

// The tests of this file are the rows of the catalogue that the table decides; those of connections
// that exist already and of the conversion of API objects are elsewhere.

func TestMasqueradeMatrix(t *testing.T) {
	services := map[string]string{
		"svc1": "172.30.0.41 np=3001 lb=1.2.3.4",
		"svc2": "172.30.0.42 np=3002 lb=5.6.7.8 etp=local hc=30000",
		"svc3": "172.30.0.43 np=3003 lb=9.10.11.12 itp=local",
	}
	// "=" means as in the column of the base.
	rows := []struct{ id, svc, packet, base, noop, masqall string }{
		{"M01", "svc1", "POD > 172.30.0.41:80", "{L,R} u", "=", "{L,R} m"},
		{"M02", "svc1", "POD > NODE:3001", "{L,R} m", "=", "="},
		{"M03", "svc1", "POD > 1.2.3.4:80", "{L,R} m", "=", "="},
		{"M04", "svc1", "NODE > 172.30.0.41:80", "{L,R} m", "{L,R} u", "="},
		{"M05", "svc1", "NODE > NODE:3001", "{L,R} m", "=", "="},
		{"M06", "svc1", "LO > 127.0.0.1:3001", "{L,R} m", "=", "="},
		{"M07", "svc1", "NODE > 1.2.3.4:80", "{L,R} m", "=", "="},
		{"M08", "svc1", "EXT > 172.30.0.41:80", "{L,R} m", "{L,R} u", "="},
		{"M09", "svc1", "EXT > NODE:3001", "{L,R} m", "=", "="},
		{"M10", "svc1", "EXT > 1.2.3.4:80", "{L,R} m", "=", "="},
		{"M11", "svc2", "POD > 172.30.0.42:80", "{L,R} u", "=", "{L,R} m"},
		{"M12", "svc2", "POD > NODE:3002", "{L,R} u", "{L} u", "="},
		{"M13", "svc2", "POD > 5.6.7.8:80", "{L,R} u", "{L} u", "="},
		{"M14", "svc2", "NODE > 172.30.0.42:80", "{L,R} m", "{L,R} u", "="},
		{"M15", "svc2", "NODE > NODE:3002", "{L,R} m", "=", "="},
		{"M16", "svc2", "LO > 127.0.0.1:3002", "{L,R} m", "=", "="},
		{"M17", "svc2", "NODE > 5.6.7.8:80", "{L,R} m", "=", "="},
		{"M18", "svc2", "EXT > 172.30.0.42:80", "{L,R} m", "{L,R} u", "="},
		{"M19", "svc2", "EXT > NODE:3002", "{L} u", "=", "="},
		{"M20", "svc2", "EXT > 5.6.7.8:80", "{L} u", "=", "="},
		{"M21", "svc3", "POD > 172.30.0.43:80", "{L} u", "=", "{L} m"},
		{"M22", "svc3", "POD > NODE:3003", "{L,R} m", "=", "="},
		{"M23", "svc3", "POD > 9.10.11.12:80", "{L,R} m", "=", "="},
		{"M24", "svc3", "NODE > 172.30.0.43:80", "{L} m", "{L} u", "="},
		{"M25", "svc3", "NODE > NODE:3003", "{L,R} m", "=", "="},
		{"M26", "svc3", "LO > 127.0.0.1:3003", "{L,R} m", "=", "="},
		{"M27", "svc3", "NODE > 9.10.11.12:80", "{L,R} m", "=", "="},
		{"M28", "svc3", "EXT > 172.30.0.43:80", "{L} m", "{L} u", "="},
		{"M29", "svc3", "EXT > NODE:3003", "{L,R} m", "=", "="},
		{"M30", "svc3", "EXT > 9.10.11.12:80", "{L,R} m", "=", "="},
		{"M32", "svc2", "10.0.9.9 > NODE:3002", "{L,R} u", "{L} u", "="},
	}
	for _, r := range rows {
		for env, want := range map[string]string{"": r.base, "noop": r.noop, "masqall": r.masqall} {
			if want == "=" {
				want = r.base
			}
			name := fmt.Sprintf("%s_%s", r.id, env)
			t.Run(strings.TrimSuffix(name, "_"), row{r.id, env, services[r.svc], "L@n1:R R@n2:R", []string{r.packet + " => " + want}}.run)
		}
	}
	both := "172.30.0.44 lb=5.6.7.8 etp=local itp=local hc=30000"
	runRows(t, []row{
		{"M31", "noop masqall", services["svc2"], "L@n1:R R@n2:R", []string{"POD > NODE:3002 => {L} u", "POD > 5.6.7.8:80 => {L} u",
			"POD > 172.30.0.42:80 => {L,R} m"}},
		{"M33", "podcidr", services["svc2"], "L@n1:R R@n2:R", []string{"10.0.9.9 > NODE:3002 => {L} u"}},
		{"M34", "veth", services["svc2"], "L@n1:R R@n2:R", []string{"EXT > 5.6.7.8:80%veth7 => {L,R} u", "EXT > 5.6.7.8:80%eth0 => {L} u"}},
		{"M35", "", both, "L@n1:R R@n2:R", []string{"POD > 5.6.7.8:80 => {L,R} u", "POD > 172.30.0.44:80 => {L} u"}},
		{"M35 noop", "noop", both, "L@n1:R R@n2:R", []string{"POD > 5.6.7.8:80 => {L} u"}},
	})
}

func TestMissingEndpoints(t *testing.T) {
	const ip = "172.30.0.41"
	const lb = ip + " np=3001 lb=1.2.3.4"
	etp := lb + " etp=local hc=30000"
	runRows(t, []row{
		{"P01 P02", "", ip, "", []string{"POD > 172.30.0.41:80 => REJECT", "NODE > 172.30.0.41:80 => REJECT", "POD > 172.30.0.41:81 => PASS",
			"POD > 172.30.0.41:80/udp => PASS"}},
		{"P04 P05", "", lb + " ext=192.168.99.11", "", []string{
			"EXT > NODE:3001 => REJECT", "EXT > 192.168.99.11:80 => REJECT", "EXT > 1.2.3.4:80 => REJECT",
			"POD > NODE:3001 => REJECT", "POD > 192.168.99.11:80 => REJECT", "POD > 1.2.3.4:80 => REJECT",
			"NODE > 1.2.3.4:80 => REJECT"}},
		{"P04 eTP Local", "", etp, "", []string{"EXT > 1.2.3.4:80 => REJECT", "POD > NODE:3001 => REJECT", "NODE > 1.2.3.4:80 => REJECT"}},
		{"P07", "", ip, ".1@n1:NR .2@n2:NS", []string{"POD > 172.30.0.41:80 => REJECT"}},
		{"P08", "", lb, ".1@n1:NT .2@n2:NT", []string{"POD > 172.30.0.41:80 => REJECT", "EXT > 1.2.3.4:80 => REJECT"}},
		{"P10", "", ip + " itp=local", ".2@n2:R", []string{"POD > 172.30.0.41:80 => DROP", "NODE > 172.30.0.41:80 => DROP", "EXT > 172.30.0.41:80 => DROP"}},
		{"P11", "", ip + " itp=local", ".1@n1:R .2@n2:R .3@n3:R", []string{"POD > 172.30.0.41:80 => {.1} u"}},
		{"P13", "", ip + " itp=local", "", []string{"POD > 172.30.0.41:80 => REJECT"}},
		{"P14 P16 P17", "", etp, "R@n2:R", []string{"EXT > 1.2.3.4:80 => DROP", "EXT > NODE:3001 => DROP",
			"POD > 1.2.3.4:80 => {R} u", "POD > NODE:3001 => {R} u",
			"NODE > 1.2.3.4:80 => {R} m", "NODE > NODE:3001 => {R} m", "LO > 127.0.0.1:3001 => {R} m",
			"POD > 172.30.0.41:80 => {R} u"}},
		{"P14 noop", "noop", etp, "R@n2:R", []string{"POD > 1.2.3.4:80 => DROP", "NODE > 1.2.3.4:80 => {R} m"}},
		{"P19", "", ip + " np=3001", ".1@n1:R .2@n2:R .3@n3:R", []string{"EXT > NODE:3001 => {.1,.2,.3} m"}},
		{"P20", "", lb + " itp=local", "R@n2:R", []string{"POD > 172.30.0.41:80 => DROP", "POD > 1.2.3.4:80 => {R} m"}},
		{"P22", "", ip + " ext=192.168.99.11 etp=local", "R@n2:R", []string{"EXT > 192.168.99.11:80 => DROP"}},
		{"P22 other family", "", ip + " np=3001 ext=fd00::9 etp=local type=ClusterIP", "R@n2:R", []string{"EXT > NODE:3001 => DROP"}},
		{"P23", "", ip + " lb=1.2.3.4 type=ClusterIP etp=local", "R@n2:R", []string{"EXT > 1.2.3.4:80 => {R} m"}},
		{"P25", "", ip + " ports=a/tcp:80,b/tcp:81", "[a/tcp:80] .1@n1:R", []string{"POD > 172.30.0.41:80 => {.1} u", "POD > 172.30.0.41:81 => REJECT"}},
	})
}

func TestTerminating(t *testing.T) {
	const ip = "172.30.0.41"
	const lb = ip + " lb=1.2.3.4"
	etp := lb + " etp=local hc=30000"
	runRows(t, []row{
		{"T01 T02", "", etp, ".1@n1:R .2@n1:R .3@n1:ST .4@n1:NT .5@n2:R", []string{"POD > 172.30.0.41:80 => {.1,.2,.5} u", "EXT > 1.2.3.4:80 => {.1,.2} u"}},
		{"T04 T05", "", etp, ".1@n1:NT .2@n1:ST .3@n1:ST .4@n1:NT .5@n2:R", []string{"EXT > 1.2.3.4:80 => {.2,.3} u",
			"POD > 1.2.3.4:80 => {.5} u", "NODE > 1.2.3.4:80 => {.5} m"}},
		{"T07", "", etp, ".1@n1:NT .5@n2:R", []string{"EXT > 1.2.3.4:80 => DROP"}},
		{"T07 remote terminating", "", etp, ".1@n1:NT .5@n2:ST", []string{"EXT > 1.2.3.4:80 => DROP", "POD > 1.2.3.4:80 => {.5} u"}},
		{"T08", "", etp, ".5@n1:NT .5@n2:NT", []string{"POD > 172.30.0.41:80 => REJECT", "EXT > 1.2.3.4:80 => REJECT"}},
		{"T10", "", lb, ".2@n1:ST .3@n1:ST .4@n2:NT .5@n2:ST", []string{"POD > 172.30.0.41:80 => {.2,.3,.5} u", "EXT > 1.2.3.4:80 => {.2,.3,.5} m"}},
		{"T11", "", lb, ".5@n2:ST", []string{"POD > 172.30.0.41:80 => {.5} u", "EXT > 1.2.3.4:80 => {.5} m"}},
		{"T13", "", ip + " itp=local", ".1@n1:NT .2@n2:R", []string{"POD > 172.30.0.41:80 => DROP"}},
		{"T14", "", ip + " itp=local", ".1@n1:R .2@n1:ST", []string{"POD > 172.30.0.41:80 => {.1} u"}},
		{"iTP Local, local ST only", "", ip + " itp=local", ".1@n1:ST .2@n2:R", []string{"POD > 172.30.0.41:80 => {.1} u"}},
	})
}

func TestTopology(t *testing.T) {
	const ip = "172.30.0.41"
	const to = "POD > 172.30.0.41:80 => "
	z01 := ".1@n1:R;z=a .2@n2:R;z=b .3@n3:R;z=c .4@n4:R;z=a"
	z13 := ".1@n1:R;z=a;n=n1 .2@n2:R;z=a;n=n2 .3@n3:R;z=b;n=n3"
	runRows(t, []row{
		{"Z01 Z19", "", ip, z01, []string{to + "{.1,.4} u"}},
		{"Z02", "", ip + " lb=1.2.3.4", z01, []string{"EXT > 1.2.3.4:80 => {.1,.4} m"}},
		{"Z03 short circuit", "", ip + " lb=1.2.3.4 etp=local hc=1", z01, []string{"POD > 1.2.3.4:80 => {.1,.4} u", "EXT > 1.2.3.4:80 => {.1} u"}},
		{"Z04", "zone=x", ip, z01, []string{to + "{.1,.2,.3,.4} u"}},
		{"Z04 no zone", "zone=", ip, z01, []string{to + "{.1,.2,.3,.4} u"}},
		{"Z05", "", ip, ".1@n1:R;z=a .2@n2:R;z=b .3@n3:R;z=c .4@n4:R", []string{to + "{.1,.2,.3,.4} u"}},
		{"Z05 first", "", ip, ".1@n1:R .2@n2:R;z=a", []string{to + "{.1,.2} u"}},
		{"Z07", "", ip, ".1@n1:R;z=a .2@n2:R;z=b .3@n3:NR", []string{to + "{.1} u"}},
		{"Z07 hint of an unready", "", ip, ".1@n1:NR;z=a .2@n2:R;z=b .3@n3:R;z=b", []string{to + "{.2,.3} u"}},
		{"Z08", "", ip, ".1@n1:R;z=a+b .2@n2:R;z=b+c .3@n3:R;z=c", []string{to + "{.1} u"}},
		{"Z10", "", ip + " itp=local", ".1@n9:R;z=a .2@n1:R;z=b .3@n3:R;z=c .4@n4:R;z=a", []string{to + "{.2} u"}},
		{"Z11", "", ip, ".1@n1:ST;z=a .2@n2:ST;z=b", []string{to + "{.1,.2} u"}},
		{"Z13", "", ip, z13, []string{to + "{.1} u"}},
		{"Z14", "", ip, strings.Replace(z13, ".1@n1:R", ".1@n1:NR", 1), []string{to + "{.2} u"}},
		{"Z16", "", ip, ".2@n2:R;n=n2 .3@n3:R;n=n3", []string{to + "{.2,.3} u"}},
		{"Z17", "NoNodeHints", ip, z13, []string{to + "{.1,.2} u"}},
		{"Z18 one lacks the node hint", "", ip, ".1@n1:R;z=a;n=n1 .2@n2:R;z=a .3@n3:R;z=b;n=n3", []string{to + "{.1,.2} u"}},
		{"Z20", "zone=b", ip, z01, []string{to + "{.2} u"}},
	})
}

func TestLoadBalancer(t *testing.T) {
	svcR := "172.30.0.41 np=3001 lb=1.2.3.4 ranges=192.168.0.0/24,203.0.113.0/25"
	const e = "L@n1:R"
	runRows(t, []row{
		{"L01 L02 L04 L05", "", svcR, e, []string{"EXT > 1.2.3.4:80 => {L} m", "BLK > 1.2.3.4:80 => DROP", "POD > 172.30.0.41:80 => {L} u",
			"BLK > NODE:3001 => {L} m", "POD > 1.2.3.4:80 => DROP", "NODE > 1.2.3.4:80 => {L} m"}},
		{"L07", "local=1.2.3.4", svcR, e, []string{"1.2.3.4 > 1.2.3.4:80 => {L} m"}},
		{"L07 other VIP", "local=1.2.3.5", svcR + " lb=1.2.3.4,1.2.3.5", e, []string{"1.2.3.5 > 1.2.3.4:80 => {L} m"}},
		{"L08", "local=1.2.3.4", "172.30.0.41 lb=1.2.3.4 ranges=203.0.113.0/25", e, []string{"NODE > 1.2.3.4:80 => DROP", "1.2.3.4 > 1.2.3.4:80 => DROP"}},
		{"L08 node unknown", "local=1.2.3.4 nohostip", svcR, e, []string{"NODE > 1.2.3.4:80 => {L} m", "1.2.3.4 > 1.2.3.4:80 => DROP"}},
		{"L10", "", svcR + " ext=192.168.99.11", e, []string{"BLK > 192.168.99.11:80 => {L} m"}},
		{"L11", "", svcR, "", []string{"BLK > 1.2.3.4:80 => DROP", "EXT > 1.2.3.4:80 => REJECT", "BLK > NODE:3001 => REJECT"}},
		{"L13", "", svcR + " etp=local hc=1", "R@n2:R", []string{"EXT > 1.2.3.4:80 => DROP", "NODE > 1.2.3.4:80 => {R} m", "BLK > 1.2.3.4:80 => DROP"}},
		{"L14", "", "172.30.0.41 fd00:30::41 lb=1.2.3.4,2001:db8:1::4 ranges=2001:db8::/64", e + " | fd00:10::5@n1:R", []string{
			"EXT > 1.2.3.4:80 => {L} m", "EXT6 > [2001:db8:1::4]:80 => {fd00:10::5} m", "2001:db8:7::1 > [2001:db8:1::4]:80 => DROP"}},
		{"ranges with a zero prefix", "", svcR + " ranges=10.0.0.0/8,0.0.0.0/0", e, []string{"BLK > 1.2.3.4:80 => {L} m"}},
		{"L17 L19", "", "172.30.0.41 np=3001", e, []string{"POD > 1.2.3.4:80 => PASS", "EXT > NODE:3001 => {L} m"}},
		{"L20", "", "172.30.0.41 lb=1.2.3.5", e, []string{"POD > 1.2.3.4:80 => PASS", "POD > 1.2.3.5:80 => {L} m"}},
		{"L22", "", "172.30.0.41 ext=1.2.3.4", e, []string{"NODE > 1.2.3.4:80 => {L} m"}},
		{"L23", "", "172.30.0.41 ext=10.1.2.3", e, []string{"POD > 10.1.2.3:80 => {L} m"}},
		{"L25", "NoExternalIPs", "172.30.0.41 ext=192.168.99.11", e, []string{"EXT > 192.168.99.11:80 => PASS", "POD > 172.30.0.41:80 => {L} u"}},
		{"L25 policy", "NoExternalIPs", "172.30.0.41 np=3001 type=ClusterIP ext=192.168.99.11 etp=local", "R@n2:R", []string{"EXT > NODE:3001 => {R} m"}},
		{"L26", "", "172.30.0.41 ports=/sctp:80 lb=1.2.3.4", "[/sctp:80] L@n1:R", []string{"EXT > 1.2.3.4:80/sctp => {L} m", "EXT > 1.2.3.4:80 => PASS"}},
	})
}

func TestNodePort(t *testing.T) {
	const svc = "172.30.0.41 np=3001"
	const e = "L@n1:R"
	const v6 = "fd00:30::41 np=3001"
	const e6 = "fd00:10::5@n1:R"
	runRows(t, []row{
		{"N01 N17", "local=192.168.7.7", svc, e, []string{"EXT > NODE:3001 => {L} m", "EXT > ALT:3001 => {L} m", "EXT > 192.168.7.7:3001 => {L} m",
			"EXT > 192.168.9.9:3001 => PASS"}},
		{"N02", "np=192.168.0.2/32", svc, e, []string{"EXT > ALT:3001 => PASS", "EXT > NODE:3001 => {L} m"}},
		{"N04", "np=192.168.0.0/24", svc, e, []string{"LO > 127.0.0.1:3001 => PASS"}},
		{"N05 N11", "", svc, e, []string{"LO > 127.0.0.1:3001 => {L} m", "EXT > 127.0.0.1:3001 => DROP", "EXT > 127.0.0.1:22 => DROP", "LO > 127.0.0.1:22 => PASS",
			"NODE > 127.0.0.1:3001 => {L} m"}},
		{"loopback ports off: no business of ours", "np=192.168.0.0/24", svc, e, []string{"EXT > 127.0.0.1:3001 => PASS"}},
		{"N07", "np=127.0.0.0/8,192.168.0.0/24", svc, e, []string{"LO > 127.0.0.1:3001 => {L} m", "EXT > NODE:3001 => {L} m", "EXT > ALT:3001 => PASS"}},
		{"N08", "", v6, e6, []string{"::1 > [::1]:3001 => PASS", "EXT6 > [fd00:192::2]:3001 => {fd00:10::5} m"}},
		{"N13", "", "172.30.0.41 ports=a/tcp:80:3001,b/udp:80:3001", "[a/tcp:80] .1@n1:R | [b/udp:80] .2@n1:R", []string{
			"EXT > NODE:3001 => {.1} m", "EXT > NODE:3001/udp => {.2} m"}},
		{"N14", "local=1.2.3.4", svc + " lb=1.2.3.4", e, []string{"EXT > 1.2.3.4:3001 => {L} m"}},
		{"N19", "", "172.30.0.41 np=3002", e, []string{"EXT > NODE:3001 => PASS", "EXT > NODE:3002 => {L} m"}},
		{"N22", "np=192.168.0.2/32", v6, e6, []string{"EXT6 > [fd00:192::2]:3001 => PASS"}},
		{"no node port", "", "172.30.0.41 lb=1.2.3.4", e, []string{"EXT > NODE:80 => PASS"}},
	})
}

func TestObjectSelection(t *testing.T) {
	const ip = "172.30.0.41"
	const to = "POD > 172.30.0.41:80 => "
	dual := "172.30.0.41 fd00:30::41"
	runRows(t, []row{
		{"O02 O25", "", ip, "", []string{to + "REJECT"}},
		{"O04", "", "np=3001 lb=1.2.3.4 ext=1.2.3.5", "L@n1:R", []string{"EXT > NODE:3001 => PASS", "EXT > 1.2.3.4:80 => PASS", "EXT > 1.2.3.5:80 => PASS"}},
		{"O07", "", ip + " ports=http/tcp:80", ".1@n1:R", []string{to + "REJECT"}},
		{"O07 unnamed", "", ip, "[/tcp:80] .1@n1:R", []string{to + "{.1} u"}},
		{"O08 other protocol", "", ip, "[/udp:80] .1@n1:R", []string{to + "REJECT"}},
		{"the slice says which port", "", ip, "[/tcp:8080] .1@n1:R", []string{to + "{10.0.1.1:8080} u"}},
		{"O11", "", ip, ".1@n1:R .2@n2:R | .1@n1:R", []string{to + "{.1,.2} u"}},
		{"O11 local wins", "", ip + " itp=local", ".1@n2:R | .1@n1:R", []string{to + "{.1} u"}},
		{"O11 first slice wins", "", ip, ".1@n1:R | .1@n1:NR .2@n2:R", []string{to + "{.1,.2} u"}},
		{"O11 local but not ready", "", ip, ".1@n2:R .2@n2:R | .1@n1:NR", []string{to + "{.2} u"}},
		{"O11 same address, two ports", "", ip, "[/tcp:80] .1@n1:R | [/tcp:81] .1@n1:R", []string{to + "{.1,10.0.1.1:81} u"}},
		{"O13", "", ip, ".2@n1:R | .1@n1:R", []string{to + "{.1,.2} u"}},
		{"O16", "", dual, "fd00:10::5@n1:R", []string{to + "REJECT", "POD6 > [fd00:30::41]:80 => {fd00:10::5} u"}},
		{"O16 one family", "", "fd00:30::41 ext=1.2.3.4 np=3001", ".1@n1:R | fd00:10::5@n1:R", []string{
			"EXT > 1.2.3.4:80 => PASS", "EXT > NODE:3001 => PASS", "EXT6 > [fd00:192::2]:3001 => {fd00:10::5} m"}},
		{"O19", "", ip + " lb=1.2.3.4 etp=local hc=1", ".1@:R", []string{"EXT > 1.2.3.4:80 => DROP"}},
		{"O19 own name unknown", "noname", ip + " lb=1.2.3.4 etp=local hc=1", ".1@:R", []string{"EXT > 1.2.3.4:80 => DROP"}},
		{"O20", "", ip + " itp=local", "[/tcp:8080] NODE@n1:R", []string{to + "{192.168.0.2:8080} u", "NODE > 172.30.0.41:80 => {192.168.0.2:8080} m"}},
		{"O26", "", ip + " lb=1.2.3.4", "203.0.113.77@:R", []string{to + "{203.0.113.77} u", "EXT > 1.2.3.4:80 => {203.0.113.77} m"}},
	})
}

func TestHairpin(t *testing.T) {
	const ip = "172.30.0.41"
	runRows(t, []row{
		{"H01", "", ip, "POD@n1:R", []string{"POD > 172.30.0.41:80 => {10.0.0.2} m"}},
		{"H02", "", ip, "POD@n1:R 10.0.0.3@n1:R", []string{"POD > 172.30.0.41:80 => {10.0.0.2 m,10.0.0.3 u}"}},
		{"H04", "noop", ip, "POD@n1:R", []string{"POD > 172.30.0.41:80 => {10.0.0.2} m"}},
	})
}
