{{- define "policy.name" -}}
{{- $name := default .Release.Name .Values.name }}
{{- if or (gt (len $name) 40) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) }}
{{- fail (printf "name: %q is not allowed: at most 40 lower-case letters, digits and '-', a letter first; without it the release's name counts" $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "policy.claim" -}}
{{ default (printf "%s-policies" (include "policy.name" .)) .Values.storage.existingClaim }}
{{- end }}

{{/* Helm itself adds app.kubernetes.io/managed-by. */}}
{{- define "policy.labels" -}}
app.kubernetes.io/name: policy-service
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: policymodel
policymodel.dev/name: {{ include "policy.name" . }}
{{- end }}

{{/* A claim that one node alone can mount brings its pods to that node; of an existing one it is not known here. */}}
{{- define "policy.affinity" -}}
{{- $term := dict "labelSelector" (dict "matchLabels" (dict "policymodel.dev/name" (include "policy.name" .))) "topologyKey" "kubernetes.io/hostname" }}
{{- if .Values.storage.existingClaim }}
podAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    {{- list (dict "weight" 100 "podAffinityTerm" $term) | toYaml | nindent 4 }}
{{- else if not (has "ReadWriteMany" .Values.storage.accessModes) }}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    {{- list $term | toYaml | nindent 4 }}
{{- end }}
{{- end }}

{{- define "policy.ourEnvironment" -}}
- {name: HOME, value: /tmp}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
- {name: RAY_worker_niceness, value: "0"}
{{- if eq .Values.serving.httpProxy "HAProxy" }}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_HAPROXY_NBTHREAD, value: "1"}
- {name: RAY_SERVE_HAPROXY_RETRY_ON, value: conn-failure empty-response}
- {name: RAY_SERVE_HAPROXY_MAXCONN, value: "7000"}
- {name: RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S, value: "60"}
- {name: RAY_SERVE_HAPROXY_METRICS_ENABLED, value: "0"}
- {name: RAY_SERVE_HAPROXY_LOG_TARGET, value: "127.0.0.1:514 sample 1:1000000"}
- {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: "app.door:middlewares"}
{{- end }}
{{- end }}

{{/* KubeRay refuses a name that stands twice: the user's word counts where both have one, and the last one of two of theirs. */}}
{{- define "policy.environment" -}}
{{- $variables := concat (include "policy.ourEnvironment" . | fromYamlArray) (default list .Values.serving.template.env) }}
{{- $order := list }}
{{- $byName := dict }}
{{- range $variables }}
{{- $order = append $order .name }}
{{- $_ := set $byName .name . }}
{{- end }}
{{- range $name := uniq $order }}
{{ list (index $byName $name) | toYaml }}
{{- end }}
{{- end }}

{{- define "policy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "policy.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{/* The text that the operator would write. Only where no PolicyModel does: a field has one writer. */}}
{{- define "policy.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
logging_config:
  encoding: JSON
  enable_access_log: false
applications:
- name: {{ include "policy.name" . | toYaml }}
  import_path: app.serve:build
  route_prefix: {{ .Values.serving.route | toYaml }}
  deployments:
  - name: ServePPOModel
    {{- with .Values.serving.autoscaling }}
    autoscaling_config:
      min_replicas: {{ int64 (default 1 .min) }}
      max_replicas: {{ int64 .max }}
      policy:
        policy_function: app.autoscaling:RequestsPerSecond
        policy_kwargs:
          target: {{ .targetRequestsPerSecond }}
    {{- else }}
    num_replicas: {{ int64 .Values.serving.replicas }}
    {{- end }}
    user_config:
      route: {{ .Values.serving.route | toYaml }}
      outOfBounds: {{ .Values.serving.outOfBounds }}
      maxBodyBytes: {{ int64 .Values.serving.maxBodyBytes }}
      accessLog: {{ .Values.serving.accessLog }}
      drainSeconds: 60
      {{- with .Values.serving.decisionLog }}
      decisionLog:
        directory: {{ printf "%s/%s" $.Release.Namespace (include "policy.name" $) }}
        totalBytes: {{ mul (int64 (default 1024 .maxMegabytes)) 1048576 }}
      {{- end }}
      {{- with .Values.policy }}
      {{- if .uri }}
      serving:
        uri: {{ .uri | toYaml }}
        digest: {{ .digest | toYaml }}
        revision: {{ int64 .revision }}
      {{- end }}
      {{- end }}
{{ end }}
