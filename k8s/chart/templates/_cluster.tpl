{{/* The RayCluster's spec, the same in both modes. */}}
{{- define "videomar.cluster" -}}
{{- $root := . -}}
rayVersion: {{ .Values.rayVersion | quote }}
authOptions:
  mode: {{ .Values.security.auth.mode }}
  {{- with .Values.security.auth.secretName }}
  secretName: {{ . }}
  {{- end }}
{{- if .Values.autoscaling.enabled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ int .Values.autoscaling.idleTimeoutSeconds }}
  resources:
    requests: {cpu: 500m, memory: 1Gi}
    limits: {cpu: 500m, memory: 1Gi}
  securityContext:
    runAsNonRoot: true
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
{{- end }}
{{- if .Values.gcsFaultTolerance.enabled }}
gcsFaultToleranceOptions:
  backend: redis
  redisAddress: {{ .Values.gcsFaultTolerance.redisAddress | quote }}
  {{- with .Values.gcsFaultTolerance.redisSecretName }}
  redisPassword: {valueFrom: {secretKeyRef: {name: {{ . }}, key: redis-password}}}
  {{- end }}
{{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: "0"  # no work on the head
    num-gpus: "0"
    dashboard-host: 0.0.0.0
    metrics-export-port: "8080"
  template: {{ include "videomar.pod" (dict "root" $root "role" "head" "pool" .Values.head "group" "head") | nindent 4 }}
workerGroupSpecs:
  {{- range $name, $pool := .Values.pools }}
  {{- if $pool.enabled }}
  - groupName: {{ kebabcase $name }}
    replicas: {{ int $pool.minReplicas }}
    minReplicas: {{ int $pool.minReplicas }}
    maxReplicas: {{ int (ternary $pool.maxReplicas $pool.minReplicas $root.Values.autoscaling.enabled) }}
    rayStartParams:
      num-cpus: {{ int (floor (float64 $pool.cpu)) | quote }}
      num-gpus: {{ int $pool.gpus | quote }}
      metrics-export-port: "8080"
    template: {{ include "videomar.pod" (dict "root" $root "role" "worker" "pool" $pool "group" (kebabcase $name)) | nindent 6 }}
  {{- end }}
  {{- end }}
{{- end }}
