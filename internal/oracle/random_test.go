package oracle

import (
	"bytes"
	"math/rand"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/internal/fwd"
)

// TestRandomIsReplayable checks that a seed decides everything.
func TestRandomIsReplayable(t *testing.T) {
	for _, opt := range []RandomOptions{{}, {Services: 3, Packets: 5}, {ForKernel: true}} {
		text := func() string {
			r := rand.New(rand.NewSource(7))
			c, cfg, packets := Random(r, opt)
			for range 20 {
				Mutate(r, c)
			}
			var b bytes.Buffer
			if err := c.WriteYAML(&b); err != nil {
				t.Fatal(err)
			}
			for _, p := range packets {
				b.WriteString(TraceCommand("f", cfg, p) + "\n")
			}
			return b.String()
		}
		if d := cmp.Diff(text(), text()); d != "" {
			t.Errorf("%+v: %s", opt, d)
		}
	}
}

// TestRandomHits checks that random packets meet what they are meant to meet: a generator whose
// packets all pass would let every comparison succeed.
func TestRandomHits(t *testing.T) {
	for name, opt := range map[string]RandomOptions{"all": {}, "kernel": {ForKernel: true}} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewSource(1))
			seen := make(map[string]int)
			total := 0
			for range 300 {
				c, cfg, packets := Random(r, opt)
				for _, p := range packets {
					total++
					for _, what := range situations(c, cfg, p) {
						seen[what]++
					}
				}
			}
			for what, least := range map[string]int{
				"pass": 100, "drop": 20, "reject": 50, "forward": 200, "masquerade": 100, "no masquerade": 50, "hairpin": 2, "several": 30,
				"from pod": 100, "from host": 100, "from outside": 100, "IPv6": 200, "to node address": 50, "to loopback": 3, "unallocated": 1,
			} {
				if got := seen[what] * 1000 / total; got < least {
					t.Errorf("%s: %d of 1000 packets, want at least %d", what, got, least)
				}
			}
		})
	}
}

func situations(c *Cluster, cfg *Config, p fwd.Packet) []string {
	a := Judge(c, cfg, p)
	h := newHost(c, cfg, p.Dst.Addr().Is4())
	out := []string{a.Verdict.String(), "from " + h.class(p).String()}
	add := func(yes bool, what string) {
		if yes {
			out = append(out, what)
		}
	}
	add(len(a.Endpoints) > 1, "several")
	add(p.Dst.Addr().Is6(), "IPv6")
	add(a.Service != "" && h.isLocal(p.Dst.Addr()), "to node address")
	add(a.Service != "" && p.Dst.Addr().IsLoopback(), "to loopback")
	add(cfg.NFTables && a.Verdict == fwd.VerdictDrop && a.Service == "", "unallocated")
	for _, e := range a.Endpoints {
		add(e.Addr() == p.Src, "hairpin")
		add(a.Masquerade[e], "masquerade")
		add(!a.Masquerade[e], "no masquerade")
	}
	return out
}

// TestYAMLKeepsEverything reads written objects again and finds them the same.
func TestYAMLKeepsEverything(t *testing.T) {
	r := rand.New(rand.NewSource(3))
	for range 50 {
		c, _, _ := Random(r, RandomOptions{})
		var b bytes.Buffer
		if err := c.WriteYAML(&b); err != nil {
			t.Fatal(err)
		}
		back, err := readYAML(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		var again bytes.Buffer
		if err := back.WriteYAML(&again); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b.String(), again.String()); d != "" {
			t.Fatal(d)
		}
		if len(back.Services) != len(c.Services) || len(back.Slices) != len(c.Slices) || len(back.Nodes) != len(c.Nodes) || len(back.ServiceCIDRs) != len(c.ServiceCIDRs) {
			t.Fatalf("objects got lost in:\n%s", b.String())
		}
	}
}

// readYAML reads a List again, by the kind of each item.
func readYAML(text []byte) (*Cluster, error) {
	var list struct{ Items []map[string]any }
	if err := yaml.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	c := &Cluster{}
	for _, item := range list.Items {
		one, err := yaml.Marshal(item)
		if err != nil {
			return nil, err
		}
		switch item["apiVersion"].(string) + " " + item["kind"].(string) {
		case "v1 Node":
			c.Nodes = append(c.Nodes, new(v1.Node))
			err = yaml.UnmarshalStrict(one, c.Nodes[len(c.Nodes)-1])
		case "v1 Service":
			c.Services = append(c.Services, new(v1.Service))
			err = yaml.UnmarshalStrict(one, c.Services[len(c.Services)-1])
		case "discovery.k8s.io/v1 EndpointSlice":
			c.Slices = append(c.Slices, new(discoveryv1.EndpointSlice))
			err = yaml.UnmarshalStrict(one, c.Slices[len(c.Slices)-1])
		case "networking.k8s.io/v1 ServiceCIDR":
			c.ServiceCIDRs = append(c.ServiceCIDRs, new(networkingv1.ServiceCIDR))
			err = yaml.UnmarshalStrict(one, c.ServiceCIDRs[len(c.ServiceCIDRs)-1])
		}
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// TestShrink checks that what does not matter is left out.
func TestShrink(t *testing.T) {
	c, _, _ := Random(rand.New(rand.NewSource(5)), RandomOptions{Services: 6})
	small := Shrink(c, func(c *Cluster) bool {
		for _, s := range c.Services {
			if strings.HasSuffix(s.Name, "3") && len(s.Spec.Ports) > 0 {
				return true
			}
		}
		return false
	})
	if len(small.Services) != 1 || len(small.Services[0].Spec.Ports) != 1 || len(small.Slices) != 0 || len(small.Nodes) != 0 {
		t.Errorf("left: %d services, %d slices, %d nodes", len(small.Services), len(small.Slices), len(small.Nodes))
	}
	if len(c.Services) != 6 {
		t.Error("Shrink changed what it was given")
	}
}
