# Redis 8 from Debian sid.

redis8_install() { debian redis8 sid-redis8 redis-server,redis-tools usr/bin/redis-server; }

redis8_prepare() { mkdir -p "$1/data"; }

redis8_words() {
  local run
  suite_run "$CACHE/debian-sid-redis8" usr/bin/redis-server
  command=("${run[@]}")
}

redis8_command() {
  redis8_words
  command+=("$HERE/redis.conf" --bind "$ADDRESS" --port "$(port redis8)" --dir "$1/data")
}
