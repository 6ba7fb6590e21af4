package compile

import (
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/internal/cluster"
)

func TestWeights(t *testing.T) {
	e := cluster.Endpoint{Addr: netip.MustParseAddr("10.0.1.7"), Place: &cluster.Place{Node: "n2", Zone: "b"}, Pod: "web-canary-1"}
	here := cluster.Endpoint{Addr: netip.MustParseAddr("10.0.1.8"), Place: &cluster.Place{Node: "n1", Zone: "a"}, Pod: "web-2"}
	for _, tt := range []struct {
		name       string
		rules      []cluster.Weight
		want, here uint32
	}{
		{"none", nil, 1, 1},
		{"all", []cluster.Weight{{Weight: 7}}, 7, 7},
		{"the first that fits", []cluster.Weight{{Selector: cluster.SelectNode, Value: "n2", Weight: 3}, {Weight: 7}}, 3, 7},
		{"local", []cluster.Weight{{Selector: cluster.SelectLocal, Weight: 100}}, 1, 100},
		{"same zone", []cluster.Weight{{Selector: cluster.SelectSameZone, Weight: 10}}, 1, 10},
		{"zone", []cluster.Weight{{Selector: cluster.SelectZone, Value: "b", Weight: 4}}, 4, 1},
		{"pod", []cluster.Weight{{Selector: cluster.SelectPod, Value: "web-canary-*", Weight: 5}}, 5, 1},
		{"address", []cluster.Weight{{Selector: cluster.SelectAddress, Prefix: netip.MustParsePrefix("10.0.1.0/29"), Weight: 6}}, 6, 1},
	} {
		c := &compiler{svc: &cluster.Service{Weights: tt.rules}, facts: &Facts{NodeName: "n1", Zone: "a"}}
		if got := c.weight(&candidate{ep: &e}); got != tt.want {
			t.Errorf("%s: weight %d, want %d", tt.name, got, tt.want)
		}
		if got := c.weight(&candidate{ep: &here, local: true}); got != tt.here {
			t.Errorf("%s: weight of the endpoint on this node %d, want %d", tt.name, got, tt.here)
		}
	}
	noZone := &compiler{svc: &cluster.Service{Weights: []cluster.Weight{{Selector: cluster.SelectSameZone, Weight: 9}}}, facts: &Facts{}}
	if got := noZone.weight(&candidate{ep: &cluster.Endpoint{}}); got != 1 {
		t.Errorf("no zone is the same zone as none: weight %d, want 1", got)
	}
}
