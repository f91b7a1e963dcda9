{{/* The chart's name, or what replaces it. */}}
{{- define "taffrail.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What the names of objects start with. Short enough for the longest suffix. */}}
{{- define "taffrail.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of a part: (list root "exporter"). */}}
{{- define "taffrail.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "taffrail.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object of a part: (list root "exporter"). */}}
{{- define "taffrail.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "taffrail.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: taffrail
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The image, by digest where there is one. */}}
{{- define "taffrail.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What a container may do: nothing. */}}
{{- define "taffrail.containerSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "taffrail.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Who the process is, by the downward API. */}}
{{- define "taffrail.identity" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end -}}

{{/* Probes of a container with the admin port. */}}
{{- define "taffrail.probes" -}}
startupProbe:
  httpGet:
    path: /-/healthy
    port: admin
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /-/healthy
    port: admin
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /-/ready
    port: admin
  periodSeconds: 5
  timeoutSeconds: 2
{{- end -}}

{{/* Where the pods of a part run: (list root "exporter"). */}}
{{- define "taffrail.scheduling" -}}
{{- $root := index . 0 -}}
{{- $part := index $root.Values (index . 1) -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $part.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml $part.topologySpreadConstraints | nindent 2 }}
{{- else if gt (int $part.replicas) 1 }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "taffrail.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Labels and annotations that a part's pods have besides: (list root "exporter"). */}}
{{- define "taffrail.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "taffrail.labels" . }}
{{- with (index $root.Values (index . 1)).podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whether rows go to Postgres. */}}
{{- define "taffrail.hasStore" -}}
{{- if or .Values.store.existingSecret .Values.store.url }}true{{ end -}}
{{- end -}}

{{/* Where rows go, for containers in the release's own namespace. */}}
{{- define "taffrail.storeEnv" -}}
{{- if .Values.store.existingSecret }}
- name: TAFFRAIL_STORE__URL_FILE
  value: /etc/taffrail/store/url
{{- else if .Values.store.url }}
- name: TAFFRAIL_STORE__URL
  value: {{ .Values.store.url | quote }}
{{- end }}
{{- end -}}

{{- define "taffrail.storeMount" -}}
{{- if .Values.store.existingSecret }}
- name: store
  mountPath: /etc/taffrail/store
  readOnly: true
{{- end }}
{{- if .Values.store.ca.configMap }}
- name: store-ca
  mountPath: /etc/taffrail/ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "taffrail.storeVolume" -}}
{{- if .Values.store.existingSecret }}
- name: store
  secret:
    secretName: {{ .Values.store.existingSecret }}
    defaultMode: 0440
    items:
      - key: {{ .Values.store.key }}
        path: url
{{- end }}
{{- include "taffrail.storeCaVolume" . }}
{{- end -}}

{{/* The authority that vouches for the database, where it is no public one. */}}
{{- define "taffrail.storeCaVolume" -}}
{{- with .Values.store.ca }}
{{- if .configMap }}
- name: store-ca
  configMap:
    name: {{ .configMap }}
    items:
      - key: {{ .key }}
        path: ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{/* A PodDisruptionBudget of a part: (list root "exporter"). */}}
{{- define "taffrail.podDisruptionBudget" -}}
{{- $root := index . 0 -}}
{{- $part := index $root.Values (index . 1) -}}
{{- if and $part.podDisruptionBudget.enabled (gt (int $part.replicas) 1) }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "taffrail.fullname" $root }}-{{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "taffrail.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ $part.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "taffrail.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* What may be spoken to from the pods of a part: names, https and the database. */}}
{{- define "taffrail.egress" -}}
- ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
- ports:
    {{- range .Values.networkPolicy.egressPorts }}
    - { port: {{ . }}, protocol: TCP }
    {{- end }}
{{- end -}}

{{/* Who may fetch metrics. */}}
{{- define "taffrail.metricsIngress" -}}
- ports:
    - { port: admin, protocol: TCP }
  {{- with .Values.networkPolicy.metricsFrom }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
