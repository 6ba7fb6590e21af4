package config

// Configz is the Config as kube-proxy 1.36 shows its own under /configz, for encoding/json: below the name of the API
// group, a KubeProxyConfiguration of v1alpha1 with all defaults, as YAML writes it.
func (c *Config) Configz() any {
	return map[string]any{"kubeproxy.config.k8s.io": c.object()}
}
