# Elasticsearch from Maven: the distribution Elastic tests against, the real server with few modules.

elasticsearch_dist() { echo "$CACHE/elasticsearch-${VERSION[elasticsearch]}"; }

elasticsearch_install() {
  java17 elasticsearch >/dev/null
  maven elasticsearch "$(elasticsearch_dist)" "downloading Elasticsearch ${VERSION[elasticsearch]} (98 MB)" elasticsearch_fetch
}

elasticsearch_fetch() {
  # Maven unpacks without a project, but wants a place of its own for a marker.
  cd "$1" || return 1
  mvn -B -ntp org.apache.maven.plugins:maven-dependency-plugin:3.6.0:unpack \
    "-Dartifact=org.elasticsearch.distribution.integ-test-zip:elasticsearch:${VERSION[elasticsearch]}:zip" \
    "-DoutputDirectory=$1" "-DmarkersDirectory=$1/markers" || return 1
  mv "$1/elasticsearch-${VERSION[elasticsearch]}"/* "$1" || return 1
  rm -rf "$1/elasticsearch-${VERSION[elasticsearch]}" "$1/markers"
}

# unprivileged STATE: fills the array as with the words that start a program under
# another user than root, which Elasticsearch insists on, and that still enters the
# directories of root and of people, where clone and cache often are. First nobody
# with the one capability that takes (and the bit without which access(2) forgets it);
# where a container withholds that, a user namespace in which root has another number.
unprivileged() {
  local nobody=65534
  as=(setpriv --reuid=$nobody --regid=$nobody --clear-groups --inh-caps=+dac_override
    --ambient-caps=+dac_override --securebits=+no_setuid_fixup)
  if "${as[@]}" test -w "$1" -a -r "$(elasticsearch_dist)/lib" 2>/dev/null; then return 0; fi
  as=(unshare --user --map-user=1000 --map-group=1000)
  if "${as[@]}" test -w "$1" -a -r "$(elasticsearch_dist)/lib" 2>/dev/null; then return 0; fi
  fail elasticsearch "it may not run as root, and neither setpriv nor unshare can start it as somebody else who reaches $1" '' \
    "run make up where root has CAP_DAC_OVERRIDE or user namespaces"
}

elasticsearch_prepare() {
  local state=$1 as dist
  dist=$(elasticsearch_dist)
  mkdir -p "$state/config" "$state/data" "$state/logs" "$state/tmp"
  cp "$HERE/elasticsearch.yml" "$state/config/elasticsearch.yml"
  cp "$dist/config/log4j2.properties" "$state/config/log4j2.properties"
  # Dumps and garbage collection logs are of no use here and would fill the clone.
  grep -vE 'Xlog:gc|HeapDump|ErrorFile' "$dist/config/jvm.options" >"$state/config/jvm.options"
  unprivileged "$state"
  if [[ ${as[0]} == setpriv ]]; then chown -R 65534:65534 "$state/config" "$state/data" "$state/logs" "$state/tmp"; fi
}

elasticsearch_command() {
  local state=$1 as
  unprivileged "$state"
  command=("${as[@]}" env "ES_JAVA_HOME=$(java17 elasticsearch)" "ES_PATH_CONF=$state/config" "ES_TMPDIR=$state/tmp"
    "ES_JAVA_OPTS=$ELASTICSEARCH_HEAP" CLI_JAVA_OPTS=-XX:TieredStopAtLevel=1 bash "$(elasticsearch_dist)/bin/elasticsearch"
    -E "network.host=$ADDRESS" -E "http.port=$(port elasticsearch)" -E "transport.port=$(($(port elasticsearch) + 100))"
    -E "path.data=$state/data" -E "path.logs=$state/logs")
}

# It answers before the shards of its indices are back; until then every search fails.
elasticsearch_settle() {
  timeout 60 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET /_cluster/health?wait_for_status=yellow&timeout=50s HTTP/1.0\r\n\r\n" >&3 && cat <&3' \
    "$ADDRESS" "$(port elasticsearch)" >/dev/null 2>&1 || true
}
