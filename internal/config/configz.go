package config

import (
	"reflect"
)

// Configz is the Config as kube-proxy shows its own under /configz, for encoding/json: one key, the group of the
// KubeProxyConfiguration, and below it the shape that kube-proxy keeps in memory. That has the names of Go fields, the
// settings of Linux and Windows apart, and the periods of the mode that runs.
func (c *Config) Configz() any {
	obj := c.object()
	m := goNames(reflect.ValueOf(obj).Elem())
	ipt, ipvs, nft := sub(m, "IPTables"), sub(m, "IPVS"), sub(m, "NFTables")
	for _, stanza := range []map[string]any{ipt, ipvs, nft} {
		delete(stanza, "SyncPeriod")
		delete(stanza, "MinSyncPeriod")
		delete(stanza, "MasqueradeAll")
	}
	m["SyncPeriod"], m["MinSyncPeriod"] = c.SyncPeriod.String(), c.MinSyncPeriod.String()
	m["Linux"] = map[string]any{"Conntrack": m["Conntrack"], "OOMScoreAdj": m["OOMScoreAdj"], "MasqueradeAll": c.MasqueradeAll}
	m["Windows"] = map[string]any{"RunAsService": m["WindowsRunAsService"]}
	cidrs := []string{}
	for _, p := range c.ClusterCIDRs {
		cidrs = append(cidrs, p.String())
	}
	sub(m, "DetectLocal")["ClusterCIDRs"] = cidrs
	for _, gone := range []string{"Conntrack", "OOMScoreAdj", "WindowsRunAsService", "ClusterCIDR", "PortRange", "TypeMeta"} {
		delete(m, gone)
	}
	return map[string]any{"kubeproxy.config.k8s.io": m}
}

// goNames makes a map of a struct, by the names of its Go fields; options of the log keep those of the file.
func goNames(v reflect.Value) map[string]any {
	m := make(map[string]any)
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		if f.Kind() == reflect.Struct && !isValue(f.Type()) && name != "Logging" {
			m[name] = goNames(f)
		} else {
			m[name] = f.Interface()
		}
	}
	return m
}

func sub(m map[string]any, name string) map[string]any { return m[name].(map[string]any) }
