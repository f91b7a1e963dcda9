{{/*
The sidecar, for the injector and for charts that depend on this one:

  initContainers:
    - {{- include "taffrail.sidecar.container" .Subcharts.taffrail | nindent 6 }}
      restartPolicy: Always
  containers:
    - name: app
      env:
        {{- include "taffrail.sidecar.env" .Subcharts.taffrail | nindent 8 }}
  volumes:
    {{- include "taffrail.sidecar.volumes" .Subcharts.taffrail | nindent 4 }}
*/}}
{{- define "taffrail.sidecar.hasStore" -}}
{{- if or .Values.sidecar.store.existingSecret .Values.sidecar.store.url }}true{{ end -}}
{{- end -}}

{{- define "taffrail.sidecar.container" -}}
{{- $sidecar := .Values.sidecar -}}
name: taffrail
image: {{ include "taffrail.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [run]
workingDir: /var/lib/taffrail
env:
  {{- if include "taffrail.sidecar.hasStore" . }}
  - name: TAFFRAIL_ROLE
    value: sidecar
  {{- else }}
  # Without a database rows stay in the pod, which then also drops them: its volume is small.
  - name: TAFFRAIL_ROLE
    value: all
  - name: TAFFRAIL_RETENTION__LOGS
    value: 1d
  {{- end }}
  {{- include "taffrail.identity" . | nindent 2 }}
  - name: TAFFRAIL_PROXY__LISTEN
    value: {{ printf "127.0.0.1:%v" $sidecar.ports.proxy | quote }}
  - name: TAFFRAIL_ADMIN__LISTEN
    value: {{ printf "0.0.0.0:%v" $sidecar.ports.admin | quote }}
  - name: TAFFRAIL_LOG__FORMAT
    value: json
  {{- if $sidecar.store.existingSecret }}
  # The Secret is in the pod's own namespace. Where there is none the pod starts all the same: its
  # metrics are complete, taffrail_store_up is 0, and its rows wait in the journal.
  - name: TAFFRAIL_STORE__URL
    valueFrom:
      secretKeyRef:
        name: {{ $sidecar.store.existingSecret }}
        key: {{ $sidecar.store.key }}
        optional: {{ $sidecar.store.optional }}
  {{- else if $sidecar.store.url }}
  - name: TAFFRAIL_STORE__URL
    value: {{ $sidecar.store.url | quote }}
  {{- end }}
  {{- if include "taffrail.sidecar.hasStore" . }}
  - name: TAFFRAIL_STORE__MIGRATE
    value: "false"
  {{- end }}
  {{- with $sidecar.config }}
  {{- include "taffrail.env" (dict "prefix" "TAFFRAIL_" "values" .) | trim | nindent 2 }}
  {{- end }}
  {{- with $sidecar.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: taffrail-admin
    containerPort: {{ $sidecar.ports.admin }}
    protocol: TCP
# The application starts when the proxy listens.
startupProbe:
  exec:
    command: [/taffrail, healthcheck]
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 60
{{- with $sidecar.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "taffrail.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  - name: taffrail-data
    mountPath: /var/lib/taffrail
  {{- if $sidecar.store.ca.configMap }}
  - name: taffrail-ca
    mountPath: /etc/taffrail/ca
    readOnly: true
  {{- end }}
{{- end -}}

{{- define "taffrail.sidecar.volumes" -}}
- name: taffrail-data
  emptyDir:
    sizeLimit: {{ .Values.sidecar.journal.sizeLimit }}
{{- with .Values.sidecar.store.ca }}
{{- if .configMap }}
- name: taffrail-ca
  configMap:
    name: {{ .configMap }}
    optional: true
    items:
      - key: {{ .key }}
        path: ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{/* The variables that lead SDKs to the sidecar, for the application's containers. */}}
{{- define "taffrail.sidecar.env" -}}
{{- $sidecar := .Values.sidecar -}}
{{- range $sidecar.sdk }}
{{- if or (empty $sidecar.providers) (has .provider $sidecar.providers) }}
- name: {{ .name }}
  value: {{ printf "http://127.0.0.1:%v%s" $sidecar.ports.proxy .path | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Labels of pods with the sidecar, by which the PodMonitor finds them. */}}
{{- define "taffrail.sidecar.labels" -}}
taffrail.dev/injected: "true"
{{- end -}}

{{/* What the injector is given. */}}
{{- define "taffrail.sidecar.json" -}}
{{- $sidecar := .Values.sidecar -}}
{{- $environment := list -}}
{{- range $sidecar.sdk -}}
{{- $value := printf "http://127.0.0.1:%v%s" $sidecar.ports.proxy .path -}}
{{- $environment = append $environment (dict "provider" .provider "name" .name "value" $value) -}}
{{- end -}}
{{- dict
  "container" (include "taffrail.sidecar.container" . | fromYaml)
  "volumes" (include "taffrail.sidecar.volumes" . | fromYamlArray)
  "ports" (list $sidecar.ports.proxy $sidecar.ports.admin)
  "native" $sidecar.native
  "providers" $sidecar.providers
  "environment" $environment
  | toPrettyJson -}}
{{- end -}}
