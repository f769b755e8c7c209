{{- define "videomar.name" -}}
{{- $name := default .Release.Name .Values.nameOverride -}}
{{- if gt (len $name) 47 }}{{ fail (printf "nameOverride: %q has %d characters, KubeRay allows 47: set a shorter nameOverride" $name (len $name)) }}{{ end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}{{ fail (printf "nameOverride: %q must be lower-case letters, digits and dashes, and begin with a letter" $name) }}{{ end -}}
{{- $name -}}
{{- end }}

{{- define "videomar.run" -}}
{{- default (include "videomar.name" .) .Values.run.name -}}
{{- end }}

{{- define "videomar.selector" -}}
app.kubernetes.io/name: videomar
app.kubernetes.io/instance: {{ include "videomar.name" . }}
{{- end }}

{{- define "videomar.labels" -}}
{{ include "videomar.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels by which gang schedulers find the job or cluster. */}}
{{- define "videomar.scheduling" -}}
{{- $queue := .Values.scheduling.queue -}}
{{- if eq .Values.scheduling.kind "kueue" }}
kueue.x-k8s.io/queue-name: {{ $queue }}
{{- else if eq .Values.scheduling.kind "volcano" }}
ray.io/scheduler-name: volcano
volcano.sh/queue-name: {{ $queue }}
{{- else if eq .Values.scheduling.kind "yunikorn" }}
ray.io/scheduler-name: yunikorn
ray.io/gang-scheduling-enabled: "true"
yunikorn.apache.org/app-id: {{ include "videomar.name" . }}
yunikorn.apache.org/queue: {{ $queue }}
{{- end }}
{{- end }}

{{- define "videomar.root" -}}
{{ trimSuffix "/" .Values.storage.path }}
{{- end }}

{{- define "videomar.datasets" -}}
{{- if eq .Values.storage.kind "s3" }}{{ trimSuffix "/" .Values.storage.s3.uri }}{{ else }}{{ include "videomar.root" . }}{{ end }}/datasets
{{- end }}

{{- define "videomar.image" -}}
{{- $tag := ternary .root.Values.image.gpuTag .root.Values.image.tag (gt (int .gpus) 0) -}}
{{- printf "%s:%s" .root.Values.image.repository (default (printf "%s-%s" .root.Chart.AppVersion (ternary "gpu" "cpu" (gt (int .gpus) 0))) $tag) -}}
{{- end }}

{{/* The command of the run: what a RayJob submits, and what NOTES shows for a RayCluster. */}}
{{- define "videomar.entrypoint" -}}
{{- $train := .Values.pools.train -}}
{{- $seats := max 1 (int $train.gpus) -}}
{{- $cpus := max 1 (div (int (floor (float64 $train.cpu))) $seats) -}}
{{- $words := list "python" (printf "%s/trainer/main.py" .Values.image.home) "train" -}}
{{- $words = append $words (printf "recipe=%s" (ternary (printf "%s/recipe.yaml" .Values.run.recipeFolder) .Values.run.recipe (not (empty .Values.run.content)))) -}}
{{- $words = append $words (printf "run.root=%s/runs" (include "videomar.root" .)) -}}
{{- $words = append $words (printf "run.name=%s" (include "videomar.run" .)) -}}
{{- $words = append $words (printf "data.root=%s" (include "videomar.datasets" .)) -}}
{{- with .Values.run.videos }}{{ $words = append $words (printf "data.videos=%s" .) }}{{ end -}}
{{- with .Values.run.captions }}{{ $words = append $words (printf "data.captions=%s" .) }}{{ end -}}
{{- $words = append $words (printf "cluster.workers=%d" (mul (int $train.minReplicas) $seats)) -}}
{{- $words = append $words (printf "cluster.cpus_per_worker=%d" $cpus) -}}
{{- if $train.gpus }}{{ $words = append $words "cluster.gpus_per_worker=1" }}{{ end -}}
{{- $words = append $words (printf "metrics.port=%d" (int .Values.monitoring.port)) -}}
{{- $words = append $words "metrics.host=0.0.0.0" -}}
{{- range $key, $value := .Values.run.overrides }}{{ $words = append $words (printf "%s=%v" $key $value) }}{{ end -}}
{{- join " " $words -}}
{{- end }}
