{{/*
Configuration keys as a file: (dict "path" (list) "values" map). A scalar of JSON is one of TOML;
an unset key is left out. Tables come after the keys of their parent, as TOML wants it.
*/}}
{{- define "taffrail.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .values }}
{{- if not (or (kindIs "map" $value) (kindIs "slice" $value) (kindIs "invalid" $value)) }}
{{ toJson $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .values }}
{{- $below := append $path (toJson $key) }}
{{- if kindIs "map" $value }}
[{{ join "." $below }}]
{{- include "taffrail.toml" (dict "path" $below "values" $value) }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
[[{{ join "." $below }}]]
{{- include "taffrail.toml" (dict "path" $below "values" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Configuration keys as variables of a container: (dict "prefix" "TAFFRAIL_" "values" map). */}}
{{- define "taffrail.env" -}}
{{- $prefix := .prefix -}}
{{- range $key, $value := .values }}
{{- $name := printf "%s%s" $prefix (upper $key) }}
{{- if kindIs "map" $value }}
{{- include "taffrail.env" (dict "prefix" (printf "%s__" $name) "values" $value) }}
{{- else if kindIs "slice" $value }}
{{- fail (printf "%s is a list, which a variable does not take: set it in exporter.config" $name) }}
{{- else if not (kindIs "invalid" $value) }}
- name: {{ $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | replace "$" "$$" | quote }}
{{- end }}
{{- end }}
{{- end -}}
