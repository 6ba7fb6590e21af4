package kube

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// The annotations of a Service that are ours; docs/services.md is for their users.
const (
	// AnnotationScheduler names the IPVS scheduler of the Service.
	AnnotationScheduler = "fairlead.dev/scheduler"
	// AnnotationSchedulerFlags is a comma list of fallback and port, for the schedulers sh and mh.
	AnnotationSchedulerFlags = "fairlead.dev/scheduler-flags"
	// AnnotationWeights is a comma list of SELECTOR=WEIGHT.
	AnnotationWeights = "fairlead.dev/weights"
	// AnnotationPriority is PriorityCritical for a Service that a new node needs before others.
	AnnotationPriority = "fairlead.dev/priority"
	PriorityCritical   = "critical"
)

// critical says whether a new node needs the Service before others: pods wait for the API server and for names, and for
// what users say. DNS is found by the label that installers give it, and by its ports where it has another.
func critical(s *v1.Service, p *problems) bool {
	switch priority := strings.TrimSpace(s.Annotations[AnnotationPriority]); priority {
	case PriorityCritical:
		return true
	case "":
	default:
		p.add(annotationField(AnnotationPriority), clip(priority)+" is no priority, none counts: want "+PriorityCritical)
	}
	switch s.Namespace {
	case metav1.NamespaceDefault:
		return s.Name == "kubernetes"
	case metav1.NamespaceSystem:
		return s.Labels["k8s-app"] == "kube-dns" || slices.ContainsFunc(s.Spec.Ports, func(p v1.ServicePort) bool {
			return p.Port == 53 && (p.Name == "dns" || p.Name == "dns-tcp")
		})
	}
	return false
}

// schedulers are those of the kernel (net/netfilter/ipvs), by the names that ipvsadm knows.
var schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}

// scheduler reads the scheduler that a Service asks for. Of a value that is wrong nothing counts: the node's default holds.
func scheduler(annotations map[string]string, p *problems) (string, fwd.SchedulerFlags) {
	name, list := strings.TrimSpace(annotations[AnnotationScheduler]), annotations[AnnotationSchedulerFlags]
	if name != "" && !slices.Contains(schedulers, name) {
		p.add(annotationField(AnnotationScheduler), fmt.Sprintf("%s is no scheduler, the default is used: want one of %s", clip(name), strings.Join(schedulers, ", ")))
		return "", 0
	}
	flags, err := fwd.ParseSchedulerFlags(list)
	if err != nil {
		p.add(annotationField(AnnotationSchedulerFlags), clip(list)+": no flag is used: want fallback, port")
		return name, 0
	}
	if flags != 0 && name != "sh" && name != "mh" {
		p.add(annotationField(AnnotationSchedulerFlags), "left out: only the schedulers sh and mh, asked for by "+AnnotationScheduler+", have flags")
		return name, 0
	}
	return name, flags
}

// maxWeights bounds the list of one Service: each endpoint is compared with each selector.
const maxWeights = 64

// weights reads how endpoints share new connections. Where one item is wrong none counts: what is left of a list that was
// meant as a whole would be a surprise.
func weights(annotations map[string]string, p *problems) []cluster.Weight {
	text := annotations[AnnotationWeights]
	if strings.TrimSpace(text) == "" {
		return nil
	}
	var out []cluster.Weight
	for item := range strings.SplitSeq(text, ",") {
		w, err := parseWeight(strings.TrimSpace(item))
		if err == nil && len(out) == maxWeights {
			err = fmt.Errorf("more than %d items", maxWeights)
		}
		if err != nil {
			p.add(annotationField(AnnotationWeights), fmt.Sprintf("%s, all endpoints weigh the same: %v", clip(item), err))
			return nil
		}
		out = append(out, w)
	}
	return out
}

func parseWeight(item string) (w cluster.Weight, err error) {
	selector, number, ok := strings.Cut(item, "=")
	if !ok {
		return w, fmt.Errorf("want SELECTOR=WEIGHT")
	}
	n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 16)
	if err != nil || n == 0 {
		return w, fmt.Errorf("want a weight from 1 to 65535")
	}
	w.Weight = uint16(n)
	kind, value, _ := strings.Cut(strings.TrimSpace(selector), ":")
	bare, named := value == "", value != ""
	switch {
	case kind == "*" && bare:
		w.Selector = cluster.SelectAll
	case kind == "local" && bare:
		w.Selector = cluster.SelectLocal
	case kind == "same-zone" && bare:
		w.Selector = cluster.SelectSameZone
	case kind == "node" && named:
		w.Selector, w.Value = cluster.SelectNode, value
	case kind == "zone" && named:
		w.Selector, w.Value = cluster.SelectZone, value
	case kind == "pod" && named:
		if _, err := path.Match(value, ""); err != nil {
			return w, fmt.Errorf("want a pattern such as pod:web-canary-*")
		}
		w.Selector, w.Value = cluster.SelectPod, value
	case kind == "address" && named:
		w.Selector = cluster.SelectAddress
		if a, ok := parseAddr(value); ok {
			w.Prefix = netip.PrefixFrom(a, a.BitLen())
		} else if w.Prefix, ok = parsePrefix(value); !ok {
			return w, fmt.Errorf("want an address or a CIDR")
		}
	default:
		return w, fmt.Errorf("want the selector *, local, same-zone, node:NAME, zone:NAME, pod:PATTERN or address:CIDR")
	}
	return w, nil
}

func annotationField(name string) string { return "metadata.annotations[" + name + "]" }
