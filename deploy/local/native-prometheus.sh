# Prometheus from Debian bookworm, whose package also brings promtool.

prometheus_install() { debian prometheus bookworm-prometheus prometheus usr/bin/prometheus usr/bin/promtool; }

prometheus_prepare() { mkdir -p "$1/data"; }

prometheus_words() { # prometheus_words [PROGRAM]: fills command with prometheus, or promtool, and nothing else
  local run
  suite_run "$CACHE/debian-bookworm-prometheus" "usr/bin/${1:-prometheus}"
  command=("${run[@]}")
}

prometheus_command() {
  prometheus_words
  command+=("--config.file=$HERE/prometheus.yml" "--storage.tsdb.path=$1/data" "--web.listen-address=$ADDRESS:$(port prometheus)")
}
