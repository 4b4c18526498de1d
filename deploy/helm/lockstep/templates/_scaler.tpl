{{/* What scales a sink by how late its changes are. root; component; sink: its name; auto: sink.autoscaling. */}}
{{- define "lockstep.scaler" -}}
{{- $name := include "lockstep.component" . -}}
{{- if .auto.hpa.enabled -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
{{ include "lockstep.metadata" (dict "root" .root "component" .component "name" $name) }}
spec:
  minReplicas: {{ .auto.minReplicas | int }}
  maxReplicas: {{ .auto.maxReplicas | int }}
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}}
  behavior:
    {{- toYaml .auto.behavior | nindent 4 }}
  metrics:
    - type: External
      external:
        metric:
          name: {{ .auto.hpa.metric }}
          selector:
            matchLabels:
              sink: {{ .sink }}
        target:
          type: Value
          value: {{ .auto.targetSeconds | toString | quote }}
{{- else -}}
{{- if not .auto.keda.serverAddress -}}
{{- fail (printf "sinks.%s.autoscaling.keda.serverAddress: is empty; give the URL of the Prometheus to ask, or set it for all in sink" .sink) -}}
{{- end -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
{{ include "lockstep.metadata" (dict "root" .root "component" .component "name" $name) }}
spec:
  minReplicaCount: {{ .auto.minReplicas | int }}
  maxReplicaCount: {{ .auto.maxReplicas | int }}
  pollingInterval: {{ .auto.keda.pollingInterval | int }}
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml .auto.behavior | nindent 8 }}
  triggers:
    - type: prometheus
      metricType: Value
      metadata:
        serverAddress: {{ .auto.keda.serverAddress | quote }}
        threshold: {{ .auto.targetSeconds | toString | quote }}
        {{- /* Nothing applied is 0 and no gap: neither a quiet database nor a store that is down asks for more replicas. */}}
        {{- /* Another release of the namespace may have a sink of the same name. Kubernetes begins the names of pods with 58 letters at most of ours. */}}
        {{- $late := printf "(histogram_quantile(0.9, sum by (le) (rate(lockstep_sink_latency_seconds_bucket{namespace=\"%s\",pod=~\"%s.+\",sink=\"SINK\"}[2m]))) > 0) or vector(0)" .root.Release.Namespace (printf "%s-" $name | trunc 58) }}
        query: {{ default $late .auto.keda.query | replace "SINK" .sink | quote }}
      {{- with .auto.keda.authenticationRef }}
      authenticationRef:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}
{{- end -}}
