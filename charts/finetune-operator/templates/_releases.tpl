{{/*
What a release has for itself in the cluster: written onto its ClusterRoleBinding, where a later release finds it. Two operators on one
object would undo each other's work for ever, and one CRD can have one owner. A binding whose operator is gone (its namespace was deleted)
is in nobody's way. `helm template` sees no cluster and refuses nothing.
*/}}
{{- define "finetune.claims" -}}
{{- $values := include "finetune.values" . | fromYaml -}}
finetune-operator.io/watches: {{ join "," $values.watchNamespaces | default "*" | quote }}
finetune-operator.io/has-crds: {{ $values.crds.enabled | quote }}
{{- end }}

{{- define "finetune.refuseOverlap" -}}
{{- $own := include "finetune.claims" . | fromYaml }}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRoleBinding" "" "").items }}
{{- $theirs := .metadata.annotations | default dict }}
{{- if hasKey $theirs "finetune-operator.io/watches" }}
{{- $name := get (.metadata.labels | default dict) "app.kubernetes.io/instance" }}
{{- $namespace := (first .subjects).namespace }}
{{- $isOther := or (ne $name $.Release.Name) (ne $namespace $.Release.Namespace) }}
{{- if and $isOther (lookup "apps/v1" "Deployment" $namespace "finetune-operator") }}
{{- include "finetune.refuseOne" (list $own $theirs (printf "release %s in namespace %s" $name $namespace) (eq $namespace $.Release.Namespace)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of (own claims, those of another release, its name in words, whether it is in the same namespace). */}}
{{- define "finetune.refuseOne" -}}
{{- $other := index . 2 }}
{{- if index . 3 }}
{{- fail (printf "%s is there already, and a namespace holds one release: upgrade that one, or install into another namespace" $other) }}
{{- end }}
{{- $own := splitList "," (get (index . 0) "finetune-operator.io/watches") }}
{{- $theirs := splitList "," (get (index . 1) "finetune-operator.io/watches") }}
{{- $both := list }}
{{- range $theirs }}
{{- if or (has . $own) (has "*" $own) (has "*" $theirs) }}
{{- $both = append $both (ternary "all namespaces" . (eq . "*")) }}
{{- end }}
{{- end }}
{{- if $both }}
{{- fail (printf "watchNamespaces: %s watches %s already, and two operators on one object undo each other's work: name other namespaces, in both releases" $other (join ", " $both)) }}
{{- end }}
{{- if and (eq (get (index . 0) "finetune-operator.io/has-crds") "true") (eq (get (index . 1) "finetune-operator.io/has-crds") "true") }}
{{- fail (printf "crds.enabled: the CRDs belong to %s, which upgrades them: set crds.enabled=false" $other) }}
{{- end }}
{{- end }}
