{{/*
Values with their defaults. Of a value that is set to null Helm leaves nothing at all, not the chart's default, and templates would
fail on it or write settings that no operator starts with. What may well be absent (resources, a tag) has no default here; for all else
a test compares null with values.yaml.
*/}}
{{- define "finetune.values" -}}
{{- mustMergeOverwrite (include "finetune.defaults" . | fromYaml) (.Values | toYaml | fromYaml) | toYaml }}
{{- end }}

{{- define "finetune.defaults" -}}
images:
  operator: {repository: finetune-operator/operator}
  trainer: {repository: finetune-operator/trainer}
  server: {repository: finetune-operator/server}
  pullPolicy: IfNotPresent
  pullSecrets: []
replicas: 2
crds: {enabled: true, keep: true}
watchNamespaces: []
policies: {}
resources: {}
logLevel: info
resyncSeconds: 300
terminationGracePeriodSeconds: 120
serviceAccount: {annotations: {}}
podAnnotations: {}
podLabels: {}
nodeSelector: {}
tolerations: []
affinity: {}
priorityClassName: ""
podDisruptionBudget: {enabled: true}
networkPolicy: {enabled: true}
metrics:
  serviceMonitor: {enabled: false, interval: 30s, labels: {}}
aggregateClusterRoles: true
{{- end }}
