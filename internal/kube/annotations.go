package kube

import (
	"errors"
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

// Fairlead's annotations of Services, described in docs/services.md.
const (
	// AnnotationScheduler is the IPVS scheduler of the Service.
	AnnotationScheduler = "fairlead.dev/scheduler"
	// AnnotationSchedulerFlags is a comma-separated list of fallback and port, for the schedulers
	// sh and mh.
	AnnotationSchedulerFlags = "fairlead.dev/scheduler-flags"
	// AnnotationWeights is a comma-separated list of SELECTOR=WEIGHT.
	AnnotationWeights = "fairlead.dev/weights"
	// AnnotationPriority is PriorityCritical for a Service that a new node needs first.
	AnnotationPriority = "fairlead.dev/priority"
	PriorityCritical   = "critical"
)

// critical reports whether a new node needs the Service first: the API server, DNS, and Services
// with the annotation. DNS is recognized by the label that installers set, or by its ports.
func critical(s *v1.Service, p *problems) bool {
	switch priority := strings.TrimSpace(s.Annotations[AnnotationPriority]); priority {
	case PriorityCritical:
		return true
	case "":
	default:
		p.add(annotationField(AnnotationPriority), clip(priority)+" is not a priority and is ignored: want "+PriorityCritical)
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

// schedulers are the kernel's schedulers (net/netfilter/ipvs).
var schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}

// scheduler returns the scheduler of a Service and its flags. An invalid value is ignored, which
// leaves the node's default.
func scheduler(annotations map[string]string, p *problems) (string, fwd.SchedulerFlags) {
	name, list := strings.TrimSpace(annotations[AnnotationScheduler]), annotations[AnnotationSchedulerFlags]
	if name != "" && !slices.Contains(schedulers, name) {
		p.add(annotationField(AnnotationScheduler), fmt.Sprintf("%s is not a scheduler, using the default: want one of %s", clip(name), strings.Join(schedulers, ", ")))
		return "", 0
	}
	flags, err := fwd.ParseSchedulerFlags(list)
	if err != nil {
		p.add(annotationField(AnnotationSchedulerFlags), clip(list)+": invalid flags, using none: want fallback, port")
		return name, 0
	}
	if flags != 0 && name != "sh" && name != "mh" {
		p.add(annotationField(AnnotationSchedulerFlags), "ignored: only the schedulers sh and mh, set by "+AnnotationScheduler+", have flags")
		return name, 0
	}
	return name, flags
}

// maxWeights limits the list of a Service: every endpoint is compared with every selector.
const maxWeights = 64

// weights returns how endpoints share new connections. If one item is invalid, the whole list is
// ignored, because the remaining items alone could have surprising effects.
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
			p.add(annotationField(AnnotationWeights), fmt.Sprintf("%s, using equal weights: %v", clip(item), err))
			return nil
		}
		out = append(out, w)
	}
	return out
}

// weightSelectors are the selectors of weights; those in selectorsWithValue have the form
// KIND:VALUE.
var weightSelectors = map[string]cluster.WeightSelector{
	"*": cluster.SelectAll, "local": cluster.SelectLocal, "same-zone": cluster.SelectSameZone,
	"node": cluster.SelectNode, "zone": cluster.SelectZone, "pod": cluster.SelectPod, "address": cluster.SelectAddress,
}

var selectorsWithValue = []cluster.WeightSelector{cluster.SelectNode, cluster.SelectZone, cluster.SelectPod, cluster.SelectAddress}

func parseWeight(item string) (w cluster.Weight, err error) {
	selector, number, ok := strings.Cut(item, "=")
	if !ok {
		return w, errors.New("want SELECTOR=WEIGHT")
	}
	n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 16)
	if err != nil || n == 0 {
		return w, errors.New("want a weight from 1 to 65535")
	}
	w.Weight = uint16(n)
	kind, value, _ := strings.Cut(strings.TrimSpace(selector), ":")
	w.Selector, ok = weightSelectors[kind]
	if !ok || slices.Contains(selectorsWithValue, w.Selector) != (value != "") {
		return w, errors.New("want the selector *, local, same-zone, node:NAME, zone:NAME, pod:PATTERN or address:CIDR")
	}
	switch w.Selector {
	case cluster.SelectAddress:
		a, ok := parseAddr(value)
		if w.Prefix = netip.PrefixFrom(a, a.BitLen()); !ok {
			w.Prefix, ok = parsePrefix(value)
		}
		if !ok {
			return w, errors.New("want an address or a CIDR")
		}
		return w, nil
	case cluster.SelectPod:
		if _, err := path.Match(value, ""); err != nil {
			return w, errors.New("want a pattern such as pod:web-canary-*")
		}
	}
	w.Value = value
	return w, nil
}

func annotationField(name string) string { return "metadata.annotations[" + name + "]" }
