{{- define "lockstep.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of a workload: root, component. A label may have 63 letters, and KEDA makes one of it. */}}
{{- define "lockstep.component" -}}
{{- $name := printf "%s-%s" (include "lockstep.fullname" .root) .component -}}
{{- if gt (len $name) 63 -}}
{{- printf "%s-%s" (trunc 54 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* By which the pods of a workload are found: of the root and, unless it is empty, a component. */}}
{{- define "lockstep.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* root, and perhaps component and further labels. */}}
{{- define "lockstep.labels" -}}
{{ include "lockstep.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with merge (dict) (default dict .labels) .root.Values.commonLabels }}
{{- range $name, $_ := . }}
{{- if has $name (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") }}
{{- fail (printf "%s: the chart gives this label to its objects, and finds its pods by it; leave it out of commonLabels and of the labels of pods and monitors" $name) }}
{{- end }}
{{- end }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object: root, name, and perhaps component, namespace, labels and annotations. */}}
{{- define "lockstep.metadata" -}}
metadata:
  name: {{ .name }}
  namespace: {{ default .root.Release.Namespace .namespace }}
  labels:
    {{- include "lockstep.labels" . | nindent 4 }}
  {{- with merge (dict) (default dict .annotations) .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "lockstep.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lockstep.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "lockstep.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* The name of the ConfigMap that routes are published in; empty for none. */}}
{{- define "lockstep.routes" -}}
{{- dig "objectives" "config_map" "name" "" .Values.config -}}
{{- end -}}

{{/* How the API is spoken to. */}}
{{- define "lockstep.scheme" -}}
{{- ternary "https" "http" (or (ne .Values.secrets.admin.tls.existingSecret "") (ne (dig "admin" "tls" "cert_file" "" .Values.config) "")) -}}
{{- end -}}

{{/* The fields of one sink: sink, and sinks.NAME over it. */}}
{{- define "lockstep.sink" -}}
{{- toYaml (mergeOverwrite (deepCopy .root.Values.sink) (deepCopy (default dict (get .root.Values.sinks .name)))) -}}
{{- end -}}
