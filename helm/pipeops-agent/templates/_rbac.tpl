{{/* Reading the common kinds of any cluster; Secrets are not among them. Discovery and the questions about one's own
rights are open to every ServiceAccount already. */}}
{{- define "pipeops-agent.rules.read" -}}
- apiGroups: [""]
  resources:
    - bindings
    - componentstatuses
    - configmaps
    - endpoints
    - events
    - limitranges
    - namespaces
    - namespaces/status
    - nodes
    - nodes/status
    - persistentvolumeclaims
    - persistentvolumeclaims/status
    - persistentvolumes
    - persistentvolumes/status
    - pods
    - pods/log
    - pods/status
    - podtemplates
    - replicationcontrollers
    - replicationcontrollers/scale
    - replicationcontrollers/status
    - resourcequotas
    - resourcequotas/status
    - serviceaccounts
    - services
    - services/status
  verbs: [get, list, watch]
- apiGroups:
    - apps
    - autoscaling
    - batch
    - discovery.k8s.io
    - events.k8s.io
    - gateway.networking.k8s.io
    - metrics.k8s.io
    - networking.k8s.io
    - node.k8s.io
    - policy
    - scheduling.k8s.io
    - storage.k8s.io
  resources: ["*"]
  verbs: [get, list, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings, clusterroles, clusterrolebindings]
  verbs: [get, list, watch]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [get, list, watch]
- apiGroups: [apiregistration.k8s.io]
  resources: [apiservices]
  verbs: [get, list, watch]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch]
{{- end -}}

{{/* Writing workloads and what they are made of. No Secrets, no RBAC, no nodes, no exec. */}}
{{- define "pipeops-agent.rules.edit" -}}
- apiGroups: [""]
  resources:
    - configmaps
    - endpoints
    - events
    - limitranges
    - persistentvolumeclaims
    - pods
    - replicationcontrollers
    - replicationcontrollers/scale
    - resourcequotas
    - serviceaccounts
    - services
  verbs: [create, update, patch, delete, deletecollection]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [create, update, patch]
- apiGroups: [apps]
  resources:
    - daemonsets
    - deployments
    - deployments/scale
    - replicasets
    - replicasets/scale
    - statefulsets
    - statefulsets/scale
  verbs: [create, update, patch, delete, deletecollection]
- apiGroups: [batch]
  resources: [jobs, cronjobs]
  verbs: [create, update, patch, delete, deletecollection]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [create, update, patch, delete, deletecollection]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, update, patch, delete, deletecollection]
- apiGroups: [networking.k8s.io]
  resources: [ingresses, networkpolicies]
  verbs: [create, update, patch, delete, deletecollection]
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways, grpcroutes, httproutes, referencegrants, tcproutes, tlsroutes, udproutes]
  verbs: [create, update, patch, delete, deletecollection]
{{- end -}}

{{/* Two-way connections into containers: the apiserver asks for create from 1.35 on, and for get on a WebSocket before. */}}
{{- define "pipeops-agent.rules.exec" -}}
- apiGroups: [""]
  resources: [pods/exec, pods/attach, pods/portforward]
  verbs: [create, get]
- apiGroups: [""]
  resources: [pods/ephemeralcontainers]
  verbs: [update, patch]
{{- end -}}

{{/* What may go through the proxy. */}}
{{- define "pipeops-agent.rules.proxy" -}}
{{- if ne .Values.rbac.proxy.preset "custom" }}
{{ include "pipeops-agent.rules.read" . }}
{{- end }}
{{- if eq .Values.rbac.proxy.preset "edit" }}
{{ include "pipeops-agent.rules.edit" . }}
{{- end }}
{{- if .Values.allowExec }}
{{ include "pipeops-agent.rules.exec" . }}
{{- end }}
{{- with .Values.rbac.proxy.rules }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* For whom the pod may speak. Constrained (KEP-5284): naming them is one right, and each verb on each resource another,
so that the pod can do through a person only what it may do itself. */}}
{{- define "pipeops-agent.rules.impersonate" -}}
{{- $who := .Values.rbac.proxy.impersonate }}
{{- $offered := semverCompare ">=1.36-0" .Capabilities.KubeVersion.Version }}
{{- $constrained := or (eq $who.mode "constrained") (and (eq $who.mode "auto") $offered) }}
{{- range $kind := list "users" "groups" }}
{{- with index $who $kind }}
- apiGroups: [{{ if $constrained }}authentication.k8s.io{{ else }}""{{ end }}]
  resources: [{{ $kind }}]
  resourceNames: {{ toJson . }}
  verbs: ["{{ if $constrained }}impersonate:user-info{{ else }}impersonate{{ end }}"]
{{- end }}
{{- end }}
{{- if and $constrained (or $who.users $who.groups) }}
{{- range $rule := include "pipeops-agent.rules.proxy" . | fromYamlArray }}
{{- $verbs := list }}
{{- range $verb := $rule.verbs }}
{{- $verbs = append $verbs (printf "impersonate-on:user-info:%s" $verb) }}
{{- end }}
{{ list (set (omit $rule "verbs") "verbs" $verbs) | toYaml }}
{{- end }}
{{- end }}
{{- end -}}
