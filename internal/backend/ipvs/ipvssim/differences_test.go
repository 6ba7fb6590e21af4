package ipvssim

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// difference is a difference between mode ipvs and the forwarding table.
type difference struct {
	// name is its name in docs/ipvs.md.
	name string
	// text is the text of docs/ipvs.md: what differs, and why.
	text string
}

// differences are all differences that packets can show. Expect implements those about the first
// packet of a connection.
var differences = []difference{
	{"other-ports", "Other ports of an address of Services are rejected: with `address` and `route` that address " +
		"is local, and the host's own sockets would answer. With `route` and `mark` all other " +
		"addresses of a service CIDR are rejected as well, unless the CIDR contains an address of the" +
		" node or an excluded one."},
	{"address-of-others", "With `address` and `route` the node owns every address of Services, with all its ports. If a" +
		" pod or another host has the same address, because it was made an external IP, it can no " +
		"longer be reached from this node."},
	{"loopback-node-ports", "No rule serves node ports on 127.0.0.0/8 and ::1: IPVS does not forward from loopback " +
		"addresses to other hosts. Fairlead itself serves TCP there, as in mode nftables."},
	{"loopback-source", "A packet whose source is a loopback address reaches only endpoints on the node, for the same" +
		" reason."},
	{"link-local-node-ports", "Node ports are not served on link-local addresses: a virtual server has no interface."},
	{"drop-for-reject", "If some sources of a frontend are to be rejected and others forwarded, the former are " +
		"dropped: IPVS rejects all or none, and iptables could reject the node's own packets only " +
		"after IPVS. No policy of Kubernetes requires this."},
	{"refused-by-icmp", "Without endpoints, the node's own TCP connections are refused with an ICMP error and not " +
		"with a reset: IPVS answers before the filter table sees them. The kernel does not limit ICMP" +
		" errors to the node itself. Other sources get a reset."},
	{"no-alternate", "If a Service has only addresses of the node, because another Service has its cluster IP, all" +
		" sources get the same endpoints: there is no address for a second virtual server."},
	{"hairpin-local", "On a kernel without xt_bpf, a connection of an endpoint to itself is masqueraded only if the" +
		" endpoint is on this node: a set of all endpoints of the cluster would be large."},
	{"affinity", "Session affinity is the kernel's: for each address and port, not for each port of a Service," +
		" and for at least two to three minutes after the last connection."},
	{"source-port", "If two open connections have the same source port and different destinations, and IPVS sends" +
		" both to the same endpoint, only the younger one continues: IPVS identifies replies only by " +
		"client and endpoint. Masqueraded connections have distinct ports."},
	{"excluded", "Fairlead does nothing at addresses in `--ipvs-exclude-cidrs`."},
	{"order", "A change consists of many small steps. New endpoints are added before old ones are removed. " +
		"But while the endpoints of a traffic policy or the classes of sources change, some sources " +
		"may briefly be refused, or get the endpoints of other sources of the same Service."},
}

// docs/ipvs.md has a table of the same differences in the same words.
func TestDifferencesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/ipvs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## What differs from the other modes\n")
	if !ok {
		t.Fatal("docs/ipvs.md has no section on differences")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var got, want []string
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| `") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for _, d := range differences {
		want = append(want, fmt.Sprintf("| `%s` | %s |", d.name, d.text))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/ipvs.md (-differences +page):\n%s", diff)
	}
}
