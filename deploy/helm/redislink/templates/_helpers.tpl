{{- define "redislink.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .version }}
{{- end -}}
{{- end -}}

{{- define "redislink.secret" -}}
{{ .Values.secretName | default (printf "redislink-party-%s" .Values.party) }}
{{- end -}}

{{/* Of Helm, on each object; no selector has them. */}}
{{- define "redislink.managed" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "redislink.labels" -}}
app.kubernetes.io/name: redislink-party
app.kubernetes.io/instance: {{ .Values.party }}
app.kubernetes.io/part-of: redislink
{{- end -}}

{{- define "redislink.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What the pods of run and agent have in common. */}}
{{- define "redislink.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10002
  runAsGroup: 10002
  fsGroup: 10002
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
# A Secret's files are readable for the group, and redislink refuses a key that others may read.
initContainers:
  - name: key
    image: {{ include "redislink.image" (dict "image" .Values.image "version" .Chart.AppVersion) }}
    command: [install, -m, "0600", /secret/identity.key, /run/redislink/identity.key]
    securityContext: {{- include "redislink.locked" . | nindent 6 }}
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {memory: 64Mi}
    volumeMounts:
      - {name: secret, mountPath: /secret, readOnly: true}
      - {name: run, mountPath: /run/redislink}
{{- end -}}

{{/* With "settings": those of this container, besides everybody's. */}}
{{- define "redislink.env" -}}
- {name: REDISLINK_PARTY, value: {{ .Values.party }}}
- {name: REDISLINK_CLUSTER_FILE, value: /etc/redislink/cluster.yaml}
- {name: REDISLINK_IDENTITY_FILE, value: /run/redislink/identity.key}
- {name: REDISLINK_BROKER_TLS_CA, value: /secret/ca.crt}
- {name: REDISLINK_BROKER_TLS_CERT, value: /secret/client.crt}
- {name: REDISLINK_BROKER_TLS_KEY, value: /secret/client.key}
{{- range $name, $value := merge (dict) .settings .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
- name: REDISLINK_BROKER_URL
  valueFrom:
    secretKeyRef: {name: {{ include "redislink.secret" . }}, key: broker-url}
{{- end -}}

{{- define "redislink.mounts" -}}
- {name: cluster, mountPath: /etc/redislink, readOnly: true}
- {name: secret, mountPath: /secret, readOnly: true}
- {name: run, mountPath: /run/redislink, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "redislink.volumes" -}}
- name: cluster
  configMap: {name: redislink-party-{{ .Values.party }}}
- name: secret
  secret: {secretName: {{ include "redislink.secret" . }}, defaultMode: 0400}
- name: run
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end -}}
