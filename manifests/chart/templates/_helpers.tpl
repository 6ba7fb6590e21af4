{{- define "fairlead.name" -}}
{{ if .Values.dropIn }}kube-proxy{{ else }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "fairlead.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "fairlead.name" .) }}
{{- end }}

{{/* Two releases in two namespaces need different ClusterRoles. */}}
{{- define "fairlead.role" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ if ne .Release.Namespace "kube-system" }}-{{ .Release.Namespace }}{{ end }}
{{- end }}

{{- define "fairlead.selector" -}}
{{ if .Values.dropIn -}}
k8s-app: kube-proxy
{{- else -}}
app.kubernetes.io/name: fairlead
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- end }}

{{- define "fairlead.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "fairlead.selector" . }}
{{- end }}

{{- define "fairlead.image" -}}
{{ with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{/* The mode. With dropIn, kubeadm's ConfigMap may set another one. */}}
{{- define "fairlead.mode" -}}
{{ if .Values.config }}{{ dig "mode" "" .Values.config | default "iptables" }}{{ else }}{{ .Values.mode }}{{ end }}
{{- end }}

{{/* Conflicts between values that the schema cannot express. */}}
{{- define "fairlead.check" -}}
{{- $v := .Values }}
{{- if $v.dropIn }}
  {{- if or $v.config $v.clusterCIDR $v.apiServer.host (ne $v.mode "iptables") }}
    {{- fail "dropIn takes mode, clusterCIDR and the API server from the ConfigMap kube-proxy: leave mode, clusterCIDR, apiServer.host and config as they are, and edit the ConfigMap" }}
  {{- end }}
  {{- if ne .Release.Namespace "kube-system" }}
    {{- fail "dropIn takes the place of kube-proxy, which is in the namespace kube-system: install with --namespace kube-system" }}
  {{- end }}
{{- else }}
  {{- if not (or $v.apiServer.host (dig "clientConnection" "kubeconfig" "" $v.config)) }}
    {{- fail "apiServer.host is empty: want an address of the API server that nodes reach without any Service" }}
  {{- end }}
  {{- if $v.config }}
    {{- if or $v.clusterCIDR (ne $v.mode "iptables") $v.localhostNodePorts }}
      {{- fail "with config, set config.mode, config.clusterCIDR and config.iptables.localhostNodePorts instead of mode, clusterCIDR and localhostNodePorts" }}
    {{- end }}
  {{- else if and (not $v.clusterCIDR) (not (contains "--detect-local-mode" (join " " $v.extraArgs))) }}
    {{- fail "clusterCIDR is empty: want the pod network, or another --detect-local-mode in extraArgs" }}
  {{- end }}
  {{- if and (eq (include "fairlead.mode" .) "ipvs") (not $v.initContainer) }}
    {{- fail "mode ipvs needs kernel parameters that only a privileged container can set: set initContainer to true" }}
  {{- end }}
{{- end }}
{{- if and $v.metrics.podMonitor.enabled (not $v.metrics.bindAddress) }}
  {{- fail "metrics.podMonitor needs metrics.bindAddress: Prometheus does not reach 127.0.0.1 of a node; 0.0.0.0:10249 for example" }}
{{- end }}
{{- end }}

{{/* Flags of both containers. */}}
{{- define "fairlead.args" -}}
{{- $v := .Values }}
{{- if $v.dropIn }}
- --config=/var/lib/kube-proxy/config.conf
{{- else if $v.config }}
- --config=/etc/fairlead/config.yaml
{{- else }}
- --mode={{ $v.mode }}
{{- with $v.clusterCIDR }}
- --cluster-cidr={{ . }}
{{- end }}
- --iptables-localhost-nodeports={{ $v.localhostNodePorts }}
{{- end }}
- --hostname-override=$(NODE_NAME)
{{- if not (or $v.dropIn $v.config (eq (int $v.healthPort) 10256)) }}
- --healthz-bind-address=0.0.0.0:{{ $v.healthPort }}
{{- end }}
{{- with $v.metrics.bindAddress }}
- --metrics-bind-address={{ . }}
{{- end }}
{{- if $v.metrics.auth }}
- --metrics-auth
{{- end }}
{{- with $v.serviceProxyName }}
- --service-proxy-name={{ . }}
{{- end }}
{{- with $v.removeTaint }}
- --remove-taint={{ . }}
{{- end }}
{{- if not (or $v.initContainer $v.dropIn) }}
- --conntrack-max-per-core=0
- --conntrack-tcp-timeout-established=0
- --conntrack-tcp-timeout-close-wait=0
{{- end }}
{{- range $v.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "fairlead.env" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- with .Values.apiServer.host }}
# These override the kubelet's values, which are the cluster IP of a Service.
- {name: KUBERNETES_SERVICE_HOST, value: {{ . | quote }}}
- {name: KUBERNETES_SERVICE_PORT, value: {{ $.Values.apiServer.port | quote }}}
{{- end }}
{{- end }}

{{- define "fairlead.mounts" -}}
- {name: xtables-lock, mountPath: /run/xtables.lock}
{{- if .Values.dropIn }}
- {name: kube-proxy, mountPath: /var/lib/kube-proxy}
{{- else if .Values.config }}
- {name: config, mountPath: /etc/fairlead, readOnly: true}
{{- end }}
{{- if or .Values.loadModules .Values.dropIn }}
- {name: lib-modules, mountPath: /lib/modules, readOnly: true}
{{- end }}
{{- end }}

{{- define "fairlead.unprivileged" -}}
# root, with few capabilities: iptables-legacy needs NET_RAW, everything else NET_ADMIN.
runAsUser: 0
capabilities: {drop: [ALL], add: [NET_ADMIN, NET_RAW{{ if .Values.loadModules }}, SYS_MODULE{{ end }}]}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
{{- end }}
