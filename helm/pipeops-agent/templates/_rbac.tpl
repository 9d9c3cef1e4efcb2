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
