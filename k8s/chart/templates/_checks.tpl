{{/* What the schema cannot say: rules between two keys. Each failure names the key. */}}
{{- define "videomar.checks" -}}
{{- range $name, $pool := .Values.pools }}
{{- if gt (int $pool.minReplicas) (int $pool.maxReplicas) }}
{{- fail (printf "pools.%s.maxReplicas: %d is below minReplicas %d" $name (int $pool.maxReplicas) (int $pool.minReplicas)) }}
{{- end }}
{{- end }}
{{- if not (and .Values.pools.train.enabled (gt (int .Values.pools.train.minReplicas) 0)) }}
{{- if eq .Values.mode "RayJob" }}{{ fail "pools.train.minReplicas: a RayJob trains on at least 1 pod of an enabled train pool" }}{{ end }}
{{- end }}
{{- with .Values.spot }}
{{- if le (int .terminationGracePeriodSeconds) (int .stopWaitSeconds) }}
{{- fail (printf "spot.terminationGracePeriodSeconds: %d must be above spot.stopWaitSeconds %d, or the kubelet kills a job that is about to commit" (int .terminationGracePeriodSeconds) (int .stopWaitSeconds)) }}
{{- end }}
{{- end }}
{{- end }}
