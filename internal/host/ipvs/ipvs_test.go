package ipvs

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFormat(t *testing.T) {
	v6 := VirtualServer{Protocol: unix.IPPROTO_SCTP, Addr: ap("[fd00::1]:443")}
	c := Content{
		Servers: []Server{
			{VirtualServer: tcp("10.96.0.1:443"), Settings: Settings{Scheduler: "rr", Flags: Sched3, TimeoutSec: 27504}, Reals: []RealState{
				{RealServer: RealServer{Addr: ap("10.0.0.1:8443"), Weight: 1}, Active: 7},
				{RealServer: RealServer{Addr: ap("10.0.0.2:8443"), Weight: 70000, Method: DirectRoute}},
			}},
			{VirtualServer: tcp("10.96.0.2:0"), Settings: Settings{Scheduler: "mh", Flags: Persistent | Fallback | SourcePort | Sched3, TimeoutSec: 10800, Prefix: 24}},
			{VirtualServer: VirtualServer{Protocol: unix.IPPROTO_UDP, Addr: ap("10.96.0.3:53")}, Settings: Settings{Scheduler: "wrr", Flags: OnePacket | Sched1 | Sched2}},
			{VirtualServer: v6, Settings: Settings{Scheduler: "sh", Flags: Persistent | Fallback, TimeoutSec: 5, Prefix: 64}, Reals: []RealState{
				{RealServer: RealServer{Addr: ap("[fd01::1]:8443"), Method: Tunnel}},
			}},
		},
	}
	const want = `-A -t 10.96.0.1:443 -s rr -b flag-3
-a -t 10.96.0.1:443 -r 10.0.0.1:8443 -m -w 1
-a -t 10.96.0.1:443 -r 10.0.0.2:8443 -g -w 70000
-A -t 10.96.0.2:0 -s mh -p 10800 -M 255.255.255.0 -b mh-fallback,mh-port,flag-3
-A -u 10.96.0.3:53 -s wrr -o -b flag-1,flag-2
-A --sctp-service [fd00::1]:443 -s sh -p 5 -M 64 -b sh-fallback
-a --sctp-service [fd00::1]:443 -r [fd01::1]:8443 -i -w 0
`
	var got string
	for _, s := range c.Servers {
		got += FormatServer(s.VirtualServer, s.Settings) + "\n"
		for _, r := range s.Reals {
			got += FormatReal(s.VirtualServer, r.RealServer) + "\n"
		}
	}
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestNames(t *testing.T) {
	v, real := tcp("10.96.0.1:443"), RealServer{Addr: ap("10.0.0.1:8443"), Weight: 3}
	for _, tt := range []struct{ got, want string }{
		{Flags(0).String(), ""},
		{(Persistent | hashed | OnePacket | Sched1 | Sched2 | Sched3 | 0x40).String(), "persistent,hashed,one-packet,flag-1,flag-2,flag-3,0x40"},
		{DirectRoute.String(), "Route"},
		{Method(9).String(), "method9"},
		{v.String(), "tcp 10.96.0.1:443"},
		{VirtualServer{Protocol: 99, Addr: v.Addr}.String(), "protocol99 10.96.0.1:443"},
		{Op{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "mh"}}.String(), "new virtual server tcp 10.96.0.1:443 with scheduler mh"},
		{Op{Verb: SetServer, Server: v, Settings: Settings{Scheduler: "mh"}}.String(), "set virtual server tcp 10.96.0.1:443 to scheduler mh"},
		{Op{Verb: DelServer, Server: v}.String(), "delete virtual server tcp 10.96.0.1:443"},
		{Op{Verb: AddReal, Server: v, Real: real}.String(), "new real server 10.0.0.1:8443 with weight 3 for tcp 10.96.0.1:443"},
		{Op{Verb: SetReal, Server: v, Real: real}.String(), "set real server 10.0.0.1:8443 to weight 3 for tcp 10.96.0.1:443"},
		{Op{Verb: DelReal, Server: v, Real: real}.String(), "delete real server 10.0.0.1:8443 of tcp 10.96.0.1:443"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestCheck(t *testing.T) {
	v, rr, real := tcp("10.96.0.1:443"), Settings{Scheduler: "rr"}, RealServer{Addr: ap("10.0.0.1:8443")}
	op := func(v VirtualServer, s Settings) Op { return Op{Verb: AddServer, Server: v, Settings: s} }
	for name, tt := range map[string]struct {
		op   Op
		want error
	}{
		"plain":                       {op(v, rr), nil},
		"delete needs no settings":    {Op{Verb: DelServer, Server: v}, nil},
		"timeout without persistence": {op(v, Settings{Scheduler: "rr", TimeoutSec: 27504}), nil},
		"all ports":                   {op(tcp("10.96.0.1:0"), Settings{Scheduler: "rr", Flags: Persistent, TimeoutSec: 1}), nil},
		"no verb":                     {Op{Server: v, Settings: rr}, unix.EINVAL},
		"no address":                  {op(VirtualServer{Protocol: unix.IPPROTO_TCP}, rr), unix.EINVAL},
		"mapped address":              {op(tcp("[::ffff:10.96.0.1]:443"), rr), unix.EINVAL},
		"address with a zone":         {op(tcp("[fe80::1%eth0]:443"), rr), unix.EINVAL},
		"ICMP":                        {op(VirtualServer{Protocol: unix.IPPROTO_ICMP, Addr: v.Addr}, rr), unix.EPROTONOSUPPORT},
		"no scheduler":                {op(v, Settings{}), unix.EINVAL},
		"a long scheduler":            {op(v, Settings{Scheduler: "1234567890123456"}), unix.EINVAL},
		"hashed":                      {op(v, Settings{Scheduler: "rr", Flags: hashed}), unix.EINVAL},
		"flag of the kernel's own":    {op(v, Settings{Scheduler: "rr", Flags: hashed}), unix.EINVAL},
		"all bits in full":            {op(v, Settings{Scheduler: "rr", Prefix: 32}), unix.EINVAL},
		"IPv6 with 32 bits":           {op(tcp("[fd00::1]:443"), Settings{Scheduler: "rr", Prefix: 32}), nil},
		"odd prefix":                  {op(v, Settings{Scheduler: "rr", Prefix: OddPrefix}), unix.EINVAL},
		"persistent for no time":      {op(v, Settings{Scheduler: "rr", Flags: Persistent}), unix.EINVAL},
		"all ports, not persistent":   {op(tcp("10.96.0.1:0"), rr), unix.EINVAL},
		"real server":                 {Op{Verb: AddReal, Server: v, Real: real}, nil},
		"real server without address": {Op{Verb: DelReal, Server: v}, unix.EINVAL},
		"real server without port":    {Op{Verb: AddReal, Server: v, Real: RealServer{Addr: ap("10.0.0.1:0")}}, unix.EINVAL},
		"real server for all ports":   {Op{Verb: AddReal, Server: tcp("10.96.0.1:0"), Real: RealServer{Addr: ap("10.0.0.1:0")}}, nil},
		"bypass":                      {Op{Verb: AddReal, Server: v, Real: RealServer{Addr: real.Addr, Method: 4}}, unix.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.op.Check(); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}
