{{- define "pipeops-agent.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pipeops-agent.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pipeops-agent.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "pipeops-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "pipeops-agent.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pipeops-agent.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount to use, or set serviceAccount.create=true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Name of the Secret that holds the agent's identity, and of the Lease. */}}
{{- define "pipeops-agent.state" -}}{{ include "pipeops-agent.fullname" . }}-state{{- end -}}
{{- define "pipeops-agent.lease" -}}{{ include "pipeops-agent.fullname" . }}{{- end -}}

{{/* The token as given in the values: one of two names that the configuration file knows for it. */}}
{{- define "pipeops-agent.token" -}}
{{- $pipeops := default dict .Values.config.pipeops -}}
{{- $agent := default dict .Values.config.agent -}}
{{- coalesce $pipeops.token $agent.token | default "" | toString | trim -}}
{{- end -}}

{{/* Refuses what would only fail in the pod, with a sentence that says what to do. */}}
{{- define "pipeops-agent.validate" -}}
{{- $token := include "pipeops-agent.token" . -}}
{{- if and (not .Values.existingSecret) (not $token) -}}
{{- fail "\n\nNo token. Give the name of a Secret that holds it:\n  --set existingSecret=NAME\nor the token itself:\n  --set-string config.pipeops.token=TOKEN\n" -}}
{{- end -}}
{{- if and .Values.existingSecret $token -}}
{{- fail "\n\nTwo tokens: existingSecret and config.pipeops.token are both set. Keep one of them.\n" -}}
{{- end -}}
{{- if regexMatch "(?i)^(<.*>|\\$.*|your[-_ ].*|.*[-_]here|change[-_]?me.*|placeholder|example|token|secret|x{3,})$" $token -}}
{{- fail (printf "\n\nconfig.pipeops.token is the placeholder %q. Put the token of your control plane there.\n" $token) -}}
{{- end -}}
{{- if regexMatch "\\s" $token -}}
{{- fail "\n\nconfig.pipeops.token holds white space: is it the whole token, and nothing else?\n" -}}
{{- end -}}
{{- range (default dict .Values.config.proxy).door_tokens -}}
{{- if hasKey . "token" -}}
{{- fail "\n\nconfig.proxy.door_tokens: an entry holds a token in clear. Give sha256 (its digest) or token_file.\n" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.nativeSidecars (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "\n\nnativeSidecars needs Kubernetes 1.29; this cluster is %s.\n" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{/*
The configuration file: config as given, without its secrets, and with what the chart decides. Secrets become files of
the mounted Secret, so that they can be rotated without a restart.
*/}}
{{- define "pipeops-agent.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $files := "/etc/pipeops/secret" -}}
{{- $state := include "pipeops-agent.state" . -}}
{{- $key := "token" -}}
{{- if .Values.existingSecret }}{{ $key = .Values.existingSecretKey }}{{ end -}}
{{- $ours := dict
  "pipeops" (dict "token_file" (printf "%s/%s" $files $key))
  "kubernetes" (dict "in_cluster" true "namespace" .Release.Namespace)
  "state" (dict "backend" "secret" "secret_name" $state "namespace" .Release.Namespace)
  "proxy" (dict "lease" (include "pipeops-agent.lease" .))
-}}
{{- if .Values.caBundle -}}
{{- $_ := set $ours.pipeops "tls" (dict "ca_file" "/etc/pipeops/config/ca.pem") -}}
{{- $_ := set $ours "tunnel" (dict "ca_file" "/etc/pipeops/config/ca.pem") -}}
{{- end -}}
{{- range $block, $secret := dict "pipeops" "token" "agent" "token" "kubernetes" "service_token" "tunnel" "credentials" -}}
{{- with get $config $block -}}
{{- if get . $secret -}}
{{- if not (eq $secret "token") -}}
{{- $file := dict (printf "%s_file" $secret) (printf "%s/%s" $files ($secret | replace "_" "-")) -}}
{{- $_ := set $ours $block (merge (get $ours $block | default dict) $file) -}}
{{- end -}}
{{- end -}}
{{- $_ := unset . $secret -}}
{{- end -}}
{{- end -}}
{{- $name := include "pipeops-agent.fullname" . -}}
{{- $hosts := list -}}
{{- range list "" ".svc" ".svc.cluster.local" -}}
{{- $hosts = append $hosts (printf "%s.%s%s" $name $.Release.Namespace .) -}}
{{- end -}}
{{- $given := default dict $config.server -}}
{{- $_ := set $config "server" (merge (dict "allowed_hosts" (concat (default list $given.allowed_hosts) (prepend $hosts $name))) $given) -}}
{{- toYaml (mergeOverwrite $config $ours) -}}
{{- end -}}

{{- define "pipeops-agent.image" -}}
{{- $image := .root.Values.image -}}
{{- if .given -}}
{{- .given -}}
{{- else -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}/{{ .name }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* One user per container: what one may read, another may not. */}}
{{- define "pipeops-agent.securityContext" -}}
runAsUser: {{ . }}
runAsGroup: {{ . }}
runAsNonRoot: true
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Alive: the event loop turns. Ready: its conditions hold. Neither asks the control plane to be up. */}}
{{- define "pipeops-agent.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: {{ . }}}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{- define "pipeops-agent.drainSeconds" -}}{{ sub (int .Values.terminationGracePeriodSeconds) 5 }}{{- end -}}

{{/* Environment of the siblings; agent-core has the file. */}}
{{- define "pipeops-agent.siblingEnv" -}}
{{- $logging := default dict .Values.config.logging -}}
- name: PIPEOPS_LOG_LEVEL
  value: {{ default "info" $logging.level | quote }}
- name: PIPEOPS_LOG_FORMAT
  value: {{ default "json" $logging.format | quote }}
- name: PIPEOPS_DRAIN_TIMEOUT
  value: {{ include "pipeops-agent.drainSeconds" . }}s
{{- with (default dict .Values.config.telemetry).otlp_endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "pipeops-agent.tunnelSidecar" -}}
- name: tunnel-sidecar
  image: {{ include "pipeops-agent.image" (dict "root" . "name" "tunnel-sidecar" "given" .Values.tunnelSidecar.image) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if .Values.nativeSidecars }}
  restartPolicy: Always
  {{- end }}
  env:
    {{- include "pipeops-agent.siblingEnv" . | nindent 4 }}
    - name: HOST_IP
      valueFrom: {fieldRef: {fieldPath: status.hostIP}}
    {{- if .Values.tunnelSidecar.tlsSecret }}
    - name: PIPEOPS_CLIENT_CERT_FILE
      value: /etc/pipeops/client-tls/tls.crt
    - name: PIPEOPS_CLIENT_KEY_FILE
      value: /etc/pipeops/client-tls/tls.key
    {{- end }}
    {{- with .Values.tunnelSidecar.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: tunnel-http, containerPort: 8081}
  {{- include "pipeops-agent.probes" "tunnel-http" | nindent 2 }}
  resources:
    {{- toYaml .Values.tunnelSidecar.resources | nindent 4 }}
  securityContext:
    {{- include "pipeops-agent.securityContext" 65532 | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - {name: edge-tunnel, mountPath: /run/pipeops/edge-tunnel, readOnly: true}
    - {name: private-tunnel, mountPath: /run/pipeops/private}
    {{- if .Values.tunnelSidecar.tlsSecret }}
    - {name: client-tls, mountPath: /etc/pipeops/client-tls, readOnly: true}
    {{- end }}
{{- end -}}

{{- define "pipeops-agent.k8sProxy" -}}
- name: k8s-proxy
  image: {{ include "pipeops-agent.image" (dict "root" . "name" "k8s-proxy" "given" .Values.k8sProxy.image) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if .Values.nativeSidecars }}
  restartPolicy: Always
  {{- end }}
  env:
    {{- include "pipeops-agent.siblingEnv" . | nindent 4 }}
    - name: PIPEOPS_POLICY_FILE
      value: /etc/pipeops/policy/policy.yaml
    # agent-core reads its state through this container before it can tell it which objects are its own.
    - name: PIPEOPS_POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: PIPEOPS_POD_NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: PIPEOPS_STATE_SECRET_NAME
      value: {{ include "pipeops-agent.state" . }}
    - name: PIPEOPS_LEASE_NAME
      value: {{ include "pipeops-agent.lease" . }}
    - name: PIPEOPS_AUDIT
      value: {{ .Values.k8sProxy.audit | quote }}
    - name: PIPEOPS_MAX_WAITING_BYTES
      value: {{ .Values.k8sProxy.maxWaitingBytes | quote }}
    {{- with .Values.k8sProxy.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: proxy-http, containerPort: 8082}
  {{- include "pipeops-agent.probes" "proxy-http" | nindent 2 }}
  resources:
    {{- toYaml .Values.k8sProxy.resources | nindent 4 }}
  securityContext:
    {{- include "pipeops-agent.securityContext" 65533 | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - {name: edge-proxy, mountPath: /run/pipeops/edge-proxy, readOnly: true}
    - {name: private-proxy, mountPath: /run/pipeops/private}
    - {name: policy, mountPath: /etc/pipeops/policy, readOnly: true}
    - {name: kube-api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end -}}
