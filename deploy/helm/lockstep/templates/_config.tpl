{{/*
The configuration as the pods have it, and the files it names: {config: ..., files: [{secret, key, path}]}, as YAML.
Whatever cannot be meant is refused here.
*/}}
{{- define "lockstep.model" -}}
{{- $v := .Values -}}
{{- $cfg := deepCopy $v.config -}}
{{- $m := dict "config" $cfg "files" list -}}

{{- include "lockstep.secret" (dict "m" $m "section" $cfg.source "in" "config.source" "field" "password" "ref" $v.secrets.source.password "at" "secrets.source.password" "path" "source/password") -}}
{{- include "lockstep.secret" (dict "m" $m "section" $cfg.source "in" "config.source" "field" "mask_salt" "ref" $v.secrets.source.maskSalt "at" "secrets.source.maskSalt" "path" "source/mask-salt") -}}
{{- if not $cfg.source.password_file -}}
{{- fail "secrets.source.password.existingSecret: is empty; name the Secret that holds the password of config.source.user, or set config.source.password_file" -}}
{{- end -}}
{{- $tls := default dict $cfg.source.tls -}}
{{- include "lockstep.certificates" (dict "m" $m "section" $tls "in" "config.source.tls" "ref" $v.secrets.source.tls "at" "secrets.source.tls" "path" "source" "off" (has (default "disabled" $tls.mode) (list "disabled")) "on" "config.source.tls.mode: verify") -}}
{{- if $tls }}{{ $_ := set $cfg.source "tls" $tls }}{{ end -}}

{{- $kafka := default dict $cfg.kafka -}}
{{- $sasl := default dict $kafka.sasl -}}
{{- include "lockstep.secret" (dict "m" $m "section" $sasl "in" "config.kafka.sasl" "field" "password" "ref" $v.secrets.kafka.password "at" "secrets.kafka.password" "path" "kafka/password") -}}
{{- if and $sasl.mechanism (not $sasl.password_file) -}}
{{- fail "secrets.kafka.password.existingSecret: is empty and config.kafka.sasl.mechanism asks for a login; name the Secret that holds its password" -}}
{{- end -}}
{{- if and $sasl.password_file (not $sasl.mechanism) -}}
{{- fail "secrets.kafka.password: is of a login and config.kafka.sasl.mechanism names none; set it, or leave the secret out" -}}
{{- end -}}
{{- $tls = default dict $kafka.tls -}}
{{- include "lockstep.certificates" (dict "m" $m "section" $tls "in" "config.kafka.tls" "ref" $v.secrets.kafka.tls "at" "secrets.kafka.tls" "path" "kafka" "off" (ne (toString $tls.enabled) "true") "on" "config.kafka.tls.enabled: true") -}}
{{- if $sasl }}{{ $_ := set $kafka "sasl" $sasl }}{{ end -}}
{{- if $tls }}{{ $_ := set $kafka "tls" $tls }}{{ end -}}
{{- if $kafka }}{{ $_ := set $cfg "kafka" $kafka }}{{ end -}}

{{- range $name, $_ := $v.secrets.sinks -}}
{{- if not (hasKey $cfg.sinks $name) -}}
{{- fail (printf "secrets.sinks.%s: config.sinks has no sink of this name; it has %s" $name (keys $cfg.sinks | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- range $name := keys $cfg.sinks | sortAlpha -}}
{{- $sink := get $cfg.sinks $name -}}
{{- $ref := default dict (get $v.secrets.sinks $name) -}}
{{- $at := printf "secrets.sinks.%s" $name -}}
{{- $path := printf "sinks/%s" $name -}}
{{- if hasSuffix "-" $name -}}
{{- fail (printf "config.sinks.%s: no object of Kubernetes may have a name that ends with -; give the sink another one" $name) -}}
{{- end -}}
{{- if hasKey $sink "elastic" -}}
{{- $s := get $sink "elastic" -}}
{{- $in := printf "config.sinks.%s.elastic" $name -}}
{{- include "lockstep.secret" (dict "m" $m "section" $s "in" $in "field" "password" "ref" $ref.password "at" (printf "%s.password" $at) "path" (printf "%s/password" $path)) -}}
{{- include "lockstep.secret" (dict "m" $m "section" $s "in" $in "field" "api_key" "ref" $ref.apiKey "at" (printf "%s.apiKey" $at) "path" (printf "%s/api-key" $path) "key" "api-key") -}}
{{- include "lockstep.certificates" (dict "m" $m "section" $s "in" $in "ref" $ref.tls "at" (printf "%s.tls" $at) "path" $path "off" false) -}}
{{- if and $s.username (not $s.password_file) -}}
{{- fail (printf "%s.password.existingSecret: is empty and %s.username asks for a login; name the Secret that holds its password" $at $in) -}}
{{- end -}}
{{- if and $s.password_file (not $s.username) -}}
{{- fail (printf "%s.password: is of a login and %s.username names none; set it, or leave the secret out" $at $in) -}}
{{- end -}}
{{- if and $s.password_file $s.api_key_file -}}
{{- fail (printf "%s: password and apiKey are two ways to log in; leave one out" $at) -}}
{{- end -}}
{{- if $ref.sentinelPassword -}}
{{- fail (printf "%s.sentinelPassword: is of Redis, and this sink is Elasticsearch; leave it out" $at) -}}
{{- end -}}
{{- else -}}
{{- $s := default dict (get $sink "redis") -}}
{{- $_ := set $sink "redis" $s -}}
{{- $in := printf "config.sinks.%s.redis" $name -}}
{{- include "lockstep.secret" (dict "m" $m "section" $s "in" $in "field" "password" "ref" $ref.password "at" (printf "%s.password" $at) "path" (printf "%s/password" $path)) -}}
{{- if and $s.username (not $s.password_file) -}}
{{- fail (printf "%s.password.existingSecret: is empty and %s.username asks for a login; name the Secret that holds its password" $at $in) -}}
{{- end -}}
{{- $sentinel := default dict $s.sentinel -}}
{{- include "lockstep.secret" (dict "m" $m "section" $sentinel "in" (printf "%s.sentinel" $in) "field" "password" "ref" $ref.sentinelPassword "at" (printf "%s.sentinelPassword" $at) "path" (printf "%s/sentinel-password" $path) "key" "sentinel-password") -}}
{{- if $sentinel }}{{ $_ := set $s "sentinel" $sentinel }}{{ end -}}
{{- $tls := default dict $s.tls -}}
{{- include "lockstep.certificates" (dict "m" $m "section" $tls "in" (printf "%s.tls" $in) "ref" $ref.tls "at" (printf "%s.tls" $at) "path" $path "off" (ne (toString $tls.enabled) "true") "on" (printf "%s.tls.enabled: true" $in)) -}}
{{- if $tls }}{{ $_ := set $s "tls" $tls }}{{ end -}}
{{- if $ref.apiKey -}}
{{- fail (printf "%s.apiKey: is of Elasticsearch, and this sink is Redis; leave it out" $at) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $tracing := default dict $cfg.tracing -}}
{{- include "lockstep.secret" (dict "m" $m "section" $tracing "in" "config.tracing" "field" "authorization" "ref" $v.secrets.tracing.authorization "at" "secrets.tracing.authorization" "path" "tracing/authorization") -}}
{{- include "lockstep.secret" (dict "m" $m "section" $tracing "in" "config.tracing" "field" "ca" "ref" $v.secrets.tracing.ca "at" "secrets.tracing.ca" "path" "tracing/ca.pem" "key" "ca.crt") -}}
{{- if and (or $tracing.authorization_file $tracing.ca_file) (not $tracing.endpoint) -}}
{{- fail "secrets.tracing: config.tracing.endpoint is empty, so nothing is traced; set it, or leave the secrets out" -}}
{{- end -}}
{{- if $tracing }}{{ $_ := set $cfg "tracing" $tracing }}{{ end -}}

{{- $admin := default dict $cfg.admin -}}
{{- range list "listen" "metrics_listen" "tokens" -}}
{{- if hasKey $admin . -}}
{{- fail (printf "config.admin.%s: the chart sets it; leave it out, and name tokens in secrets.tokens" .) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $admin "listen" "${LOCKSTEP_ADMIN_LISTEN:-127.0.0.1:8080}" -}}
{{- $_ := set $admin "metrics_listen" ":9090" -}}
{{- $tls = default dict $admin.tls -}}
{{- include "lockstep.certificates" (dict "m" $m "section" $tls "in" "config.admin.tls" "ref" $v.secrets.admin.tls "at" "secrets.admin.tls" "path" "admin" "authority" "client_ca" "off" false) -}}
{{- if $tls }}{{ $_ := set $admin "tls" $tls }}{{ end -}}
{{- $tokens := list -}}
{{- range $v.secrets.tokens -}}
{{- $name := .name -}}
{{- range $tokens }}{{ if eq .name $name }}{{ fail (printf "secrets.tokens: there are two of the name %s; give one another name" $name) }}{{ end }}{{ end -}}
{{- $path := printf "tokens/%s" .name -}}
{{- $tokens = append $tokens (dict "name" .name "role" .role "file" (printf "/etc/lockstep-secrets/%s" $path)) -}}
{{- $_ := set $m "files" (append $m.files (dict "secret" .existingSecret "key" (default "token" .key) "path" $path)) -}}
{{- end -}}
{{- if $tokens }}{{ $_ := set $admin "tokens" $tokens }}{{ end -}}
{{- $_ := set $cfg "admin" $admin -}}
{{- toYaml $m -}}
{{- end -}}

{{/* Puts the file of a secret into its section, and into the files of m. */}}
{{- define "lockstep.secret" -}}
{{- $file := printf "%s_file" .field -}}
{{- if hasKey .section .field -}}
{{- fail (printf "%s.%s: a secret has no place in a ConfigMap; name the Secret that holds it in %s.existingSecret" .in .field .at) -}}
{{- end -}}
{{- if and .ref .ref.existingSecret -}}
{{- if hasKey .section $file -}}
{{- fail (printf "%s.%s: is set and %s names a Secret, too; leave one out" .in $file .at) -}}
{{- end -}}
{{- $_ := set .section $file (printf "/etc/lockstep-secrets/%s" .path) -}}
{{- $_ := set .m "files" (append .m.files (dict "secret" .ref.existingSecret "key" (default (default .field .key) .ref.key) "path" .path)) -}}
{{- end -}}
{{- end -}}

{{/* The same for the certificates of a section. */}}
{{- define "lockstep.certificates" -}}
{{- $a := . -}}
{{- if and .ref .ref.existingSecret -}}
{{- if .off -}}
{{- fail (printf "%s: TLS is off, so these certificates are of no use; set %s, or leave them out" .at .on) -}}
{{- end -}}
{{- if ne (empty .ref.cert) (empty .ref.key) -}}
{{- fail (printf "%s: cert and key belong together; set both, or none" .at) -}}
{{- end -}}
{{- $names := dict "ca" (ternary (get .ref "ca") "ca.crt" (hasKey .ref "ca")) "cert" .ref.cert "key" .ref.key -}}
{{- range $part := list "ca" "cert" "key" -}}
{{- with get $names $part -}}
{{- $file := printf "%s_file" (ternary (default "ca" $a.authority) $part (eq $part "ca")) -}}
{{- if hasKey $a.section $file -}}
{{- fail (printf "%s.%s: is set and %s names a Secret, too; leave one out" $a.in $file $a.at) -}}
{{- end -}}
{{- $path := printf "%s/%s.pem" $a.path $part -}}
{{- $_ := set $a.section $file (printf "/etc/lockstep-secrets/%s" $path) -}}
{{- $_ := set $a.m "files" (append $a.m.files (dict "secret" $a.ref.existingSecret "key" . "path" $path)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What cannot be meant, beside the configuration. */}}
{{- define "lockstep.refuse" -}}
{{- $v := .Values -}}
{{- if $v.capture.autoscaling -}}
{{- fail "capture.autoscaling: one capture is active whatever their number, so it is never scaled; leave it out" -}}
{{- end -}}
{{- range $name, $_ := $v.sinks -}}
{{- if not (hasKey $v.config.sinks $name) -}}
{{- fail (printf "sinks.%s: config.sinks has no sink of this name; it has %s" $name (keys $v.config.sinks | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- $routes := default dict (dig "objectives" "config_map" dict $v.config) -}}
{{- if and (eq (toString $routes.name) (include "lockstep.fullname" .)) (has (default "" $routes.namespace) (list "" .Release.Namespace)) -}}
{{- fail (printf "config.objectives.config_map.name: %s is the ConfigMap of the configuration; take another name" $routes.name) -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled $v.podMonitor.enabled -}}
{{- fail "serviceMonitor.enabled and podMonitor.enabled: both would scrape every pod twice; turn one off" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.egress) -}}
{{- fail "networkPolicy.egress: is empty, so no pod would reach MySQL, Kafka or a store; list where they may connect to" -}}
{{- end -}}
{{- end -}}
