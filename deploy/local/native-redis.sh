# Redis from Debian bookworm.

redis_install() { bookworm redis; }

redis_prepare() { mkdir -p "$1/data"; }

redis_command() {
  local run
  suite_run "$CACHE/debian-bookworm" usr/bin/redis-server
  command=("${run[@]}" "$HERE/redis.conf" --bind "$ADDRESS" --port "$(port redis)" --dir "$1/data")
}
