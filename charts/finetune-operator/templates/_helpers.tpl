{{- define "finetune.labels" -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "finetune.selector" -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* An image of (which one, the root). Without tag or digest it is the chart's own version: never latest, which is another image each day. */}}
{{- define "finetune.image" -}}
{{- $root := index . 1 }}
{{- $image := get (include "finetune.values" $root | fromYaml).images (index . 0) }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* The name, of (what it is, the root), of something that the whole cluster shares with other releases. */}}
{{- define "finetune.clusterName" -}}
{{- $root := index . 1 }}
{{- index . 0 }}.{{ $root.Release.Namespace }}.{{ $root.Release.Name }}
{{- end }}

{{- define "finetune.statusService" -}}finetune-status{{- end }}
{{- define "finetune.statusSecret" -}}finetune-status-tls{{- end }}

{{/* Rights on what the operator reads and writes for jobs and versions; compared by a test with what the code applies. */}}
{{- define "finetune.rules" -}}
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs]
  verbs: [get, list, watch, delete]
- apiGroups: [finetune-operator.io]
  resources: [modelversions]
  verbs: [get, list, watch, create]
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs/status, modelversions/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete] # patch: labels that somebody took away
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create] # create: dry runs only, so that admission answers before a Job exists
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
