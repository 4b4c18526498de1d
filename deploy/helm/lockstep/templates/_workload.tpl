{{/*
The pod of a workload. root; component; args: the words of the command; own: its pod, merged over that of all;
and perhaps env: its own variables.
*/}}
{{- define "lockstep.template" -}}
{{- $root := .root -}}
{{- $pod := mergeOverwrite (deepCopy $root.Values.pod) (deepCopy (default dict .own)) -}}
metadata:
  labels:
    {{- include "lockstep.labels" (dict "root" $root "component" .component "labels" $pod.labels) | nindent 4 }}
  {{- $annotations := deepCopy $pod.annotations }}
  {{- if $root.Values.restartOnConfigChange }}
  {{- $_ := set $annotations "checksum/config" (include "lockstep.model" $root | sha256sum) }}
  {{- end }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "lockstep.podspec" (dict "root" $root "component" .component "pod" $pod) | nindent 2 }}
  containers:
    - name: lockstep
      {{- include "lockstep.container" (dict "root" $root "pod" $pod "args" .args "env" .env) | nindent 6 }}
      ports:
        - {name: metrics, containerPort: 9090, protocol: TCP}
        {{- if and (eq .component "admin") $root.Values.secrets.tokens }}
        - {name: api, containerPort: 8080, protocol: TCP}
        {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: metrics}
        {{- toYaml $pod.startupProbe | nindent 8 }}
      livenessProbe:
        httpGet: {path: /healthz, port: metrics}
        {{- toYaml $pod.livenessProbe | nindent 8 }}
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        {{- toYaml $pod.readinessProbe | nindent 8 }}
{{- end -}}

{{/* What every pod has beside its containers. */}}
{{- define "lockstep.podspec" -}}
{{- $pod := .pod -}}
{{- $a := . -}}
serviceAccountName: {{ include "lockstep.serviceAccount" .root }}
automountServiceAccountToken: {{ and (ne .component "test") (not (empty (include "lockstep.routes" .root))) }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $pod.terminationGracePeriodSeconds | int }}
securityContext:
  {{- toYaml $pod.securityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $one := deepCopy . }}
  {{- if not $one.labelSelector }}
  {{- $_ := set $one "labelSelector" (dict "matchLabels" (include "lockstep.selector" $a | fromYaml)) }}
  {{- end }}
  - {{- toYaml $one | nindent 4 }}
  {{- end }}
{{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "lockstep.fullname" .root }}
  {{- with (include "lockstep.model" .root | fromYaml).files }}
  - name: secrets
    projected:
      # A token's file must not be open to all.
      defaultMode: 288 # 0440
      sources:
        {{- range . }}
        - secret:
            name: {{ .secret }}
            items:
              - {key: {{ .key | quote }}, path: {{ .path | quote }}}
        {{- end }}
  {{- end }}
  - name: tmp
    emptyDir:
      sizeLimit: {{ $pod.tmpSizeLimit }}
  {{- with $pod.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $pod.extraSpec }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every container has. */}}
{{- define "lockstep.container" -}}
image: {{ include "lockstep.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args:
  {{- toYaml .args | nindent 2 }}
env:
  - {name: LOCKSTEP_CONFIG, value: /etc/lockstep/lockstep.yaml}
  {{- with .env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .pod.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  {{- toYaml .pod.containerSecurityContext | nindent 2 }}
resources:
  {{- toYaml .pod.resources | nindent 2 }}
volumeMounts:
  # The folder and not the file, so that changes arrive.
  - {name: config, mountPath: /etc/lockstep, readOnly: true}
  {{- if (include "lockstep.model" .root | fromYaml).files }}
  - {name: secrets, mountPath: /etc/lockstep-secrets, readOnly: true}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
  {{- with .pod.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
A Deployment and its PodDisruptionBudget. root; component; args; values: the workload's; scaled: whether something else says the
number; most: the largest number then; env.
*/}}
{{- define "lockstep.workload" -}}
{{- $name := include "lockstep.component" . -}}
apiVersion: apps/v1
kind: Deployment
{{ include "lockstep.metadata" (dict "root" .root "component" .component "name" $name) }}
spec:
  {{- if not .scaled }}
  replicas: {{ .values.replicas | int }}
  {{- end }}
  strategy:
    {{- toYaml (ternary (dict "type" "Recreate") .values.strategy (eq (toString .values.strategy.type) "Recreate")) | nindent 4 }}
  selector:
    matchLabels:
      {{- include "lockstep.selector" . | nindent 6 }}
  template:
    {{- include "lockstep.template" (dict "root" .root "component" .component "args" (concat .args .values.args) "own" .values.pod "env" .env) | nindent 4 }}
{{- if and .values.podDisruptionBudget.enabled (gt (ternary .most .values.replicas .scaled | int) 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
{{ include "lockstep.metadata" (dict "root" .root "component" .component "name" $name) }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "lockstep.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
