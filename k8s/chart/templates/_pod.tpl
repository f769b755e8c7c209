{{/* A pod template. Takes root (the chart's context), role (head or worker), pool (its values) and group (its name). */}}
{{- define "videomar.pod" -}}
{{- $root := .root }}{{ $values := .root.Values }}{{ $pool := .pool }}{{ $gpus := int (default 0 .pool.gpus) -}}
metadata:
  labels:
    {{- include "videomar.labels" $root | nindent 4 }}
    videomar.dev/run: {{ include "videomar.run" $root | trunc 63 | quote }}
    videomar.dev/pool: {{ .group | quote }}
  {{- if ne .role "submitter" }}
  annotations:
    # a run that moves to save a node costs more than the node
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
  {{- end }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "videomar.name" $root }}-{{ ternary "head" "worker" (eq .role "head") }}
  automountServiceAccountToken: {{ and (eq .role "head") $values.autoscaling.enabled }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int $values.spot.terminationGracePeriodSeconds }}
  {{- with $values.scheduling.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $pool.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := default list $pool.tolerations }}
  {{- if $pool.spot }}{{ $tolerations = concat $tolerations $values.spot.tolerations }}{{ end }}
  {{- with $tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $pool.spot $values.spot.labels }}
  affinity:
    nodeAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          preference:
            matchExpressions:
              {{- range $key, $value := $values.spot.labels }}
              - {key: {{ $key }}, operator: In, values: [{{ $value | quote }}]}
              {{- end }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ int $values.security.runAsUser }}
    runAsGroup: {{ int $values.security.runAsUser }}
    fsGroup: {{ int $values.security.runAsUser }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: {{ ternary "ray-job-submitter" (printf "ray-%s" .role) (eq .role "submitter") }}
      image: {{ include "videomar.image" (dict "root" $root "gpus" $gpus) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          {{- if and $values.network.rdma.enabled $gpus }}
          add: [IPC_LOCK]
          {{- end }}
      env: {{ include "videomar.env" (dict "root" $root "gpus" $gpus) | nindent 8 }}
      resources:
        requests:
          cpu: {{ $pool.cpu | quote }}
          memory: {{ $pool.memory }}
          {{- include "videomar.devices" (dict "root" $root "pool" $pool "gpus" $gpus) | indent 10 }}
        limits:
          cpu: {{ $pool.cpu | quote }}
          memory: {{ $pool.memory }}
          {{- include "videomar.devices" (dict "root" $root "pool" $pool "gpus" $gpus) | indent 10 }}
      {{- if ne .role "submitter" }}
      ports:
        {{- if eq .role "head" }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        {{- end }}
        - {name: ray-metrics, containerPort: 8080}
        - {name: metrics, containerPort: {{ int $values.monitoring.port }}}
      {{- include "videomar.probes" . | nindent 6 }}
      lifecycle:
        preStop:
          # Ray hands back what the node was doing; the run goes on elsewhere from its last commit
          exec: {command: [ray, stop, --grace-period, {{ int $values.spot.stopWaitSeconds | quote }}]}
      {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if ne .role "submitter" }}
        - {name: shm, mountPath: /dev/shm}
        - {name: data, mountPath: {{ $values.storage.path }}}
        {{- if $values.run.content }}
        - {name: recipe, mountPath: {{ $values.run.recipeFolder }}, readOnly: true}
        {{- end }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if ne .role "submitter" }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ default "1Gi" $pool.shm }}}
    - name: data
      persistentVolumeClaim: {claimName: {{ default (printf "%s-data" (include "videomar.name" $root)) $values.storage.pvc.existingClaim }}}
    {{- if $values.run.content }}
    - name: recipe
      configMap: {name: {{ include "videomar.name" $root }}-recipe}
    {{- end }}
    {{- end }}
{{- end }}

{{- define "videomar.devices" -}}
{{- if .gpus }}
{{ .pool.gpuResource }}: {{ .gpus }}
{{- if .root.Values.network.rdma.enabled }}
{{ .root.Values.network.rdma.resource }}: {{ int .root.Values.network.rdma.count }}
{{- end }}
{{- end }}
{{- end }}

{{/* Ray's own health paths need no token; the kubelet asks them without a program in the image. */}}
{{- define "videomar.probes" -}}
{{- $port := ternary 8265 52365 (eq .role "head") -}}
{{- $path := ternary "/api/gcs_healthz" "/api/local_raylet_healthz" (eq .role "head") -}}
startupProbe:
  httpGet: {path: {{ $path }}, port: {{ $port }}}
  periodSeconds: 5
  failureThreshold: 60
readinessProbe:
  httpGet: {path: {{ $path }}, port: {{ $port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
livenessProbe:
  httpGet: {path: {{ $path }}, port: {{ $port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 30
{{- end }}

{{- define "videomar.env" -}}
{{- $values := .root.Values -}}
- {name: HOME, value: /tmp}
- {name: PYTHONUNBUFFERED, value: "1"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_JOB_STOP_WAIT_TIME_S, value: {{ int $values.spot.stopWaitSeconds | quote }}}
{{- if eq $values.security.auth.mode "disabled" }}
- {name: RAY_AUTH_MODE, value: disabled}
{{- end }}
{{- if not .gpus }}
- {name: DS_ACCELERATOR, value: cpu}
{{- else }}
{{- range $name, $value := $values.network.nccl }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- if eq $values.storage.kind "s3" }}
{{- with $values.storage.s3.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with $values.storage.s3.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- with $values.storage.s3.secretName }}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ . }}, key: access-key-id}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ . }}, key: secret-access-key}}}
{{- end }}
{{- end }}
{{- end }}
