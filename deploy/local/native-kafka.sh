# Kafka from Maven: the broker and its runtime dependencies, one KRaft node.

kafka_dist() { echo "$CACHE/kafka-${VERSION[kafka]}"; }

kafka_install() {
  java17 kafka >/dev/null
  maven kafka "$(kafka_dist)" "downloading Kafka ${VERSION[kafka]}" kafka_fetch
}

kafka_fetch() {
  cd "$1" || return 1
  cat >pom.xml <<POM || return 1
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>lockstep</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>${VERSION[kafka]}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
POM
  mvn -B -ntp org.apache.maven.plugins:maven-dependency-plugin:3.6.0:copy-dependencies \
    -DincludeScope=runtime "-DoutputDirectory=$1/libs"
}

kafka_java() {
  command=("$(java17 kafka)/bin/java" -cp "$(kafka_dist)/libs/*" -Dorg.apache.logging.log4j.level=INFO)
}

kafka_prepare() {
  local state=$1 command controller=$(($(port kafka) + 1))
  # The shared file says what a broker of ours is; where it listens and writes is known only here.
  {
    cat "$HERE/server.properties"
    echo "listeners=BROKER://$ADDRESS:$(port kafka),CONTROLLER://$ADDRESS:$controller"
    echo "advertised.listeners=BROKER://$ADDRESS:$(port kafka)"
    echo "controller.quorum.voters=1@$ADDRESS:$controller"
    echo "log.dirs=$state/data"
  } >"$state/server.properties"
  if [[ -d $state/data ]]; then return 0; fi
  kafka_java
  step kafka "making the data directory" "$state/log" install_into "$state/data" kafka_format ||
    fail kafka "the data directory could not be made" "$state/log"
}

kafka_format() {
  local id
  id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_')
  sed "s#^log.dirs=.*#log.dirs=$1#" "$state/server.properties" >"$state/format.properties"
  # The id may not begin like an option.
  "${command[@]}" -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format -t "L${id:1:21}" -c "$state/format.properties"
}

kafka_command() {
  kafka_java
  # shellcheck disable=SC2206
  command+=($KAFKA_HEAP -XX:+UseG1GC kafka.Kafka "$1/server.properties")
}
