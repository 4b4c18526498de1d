# Redis from Debian bookworm.

redis_install() { bookworm redis; }

redis_prepare() { mkdir -p "$1/data"; }

redis_words() { # fills command with the server and nothing else
  local run
  suite_run "$CACHE/debian-bookworm" usr/bin/redis-server
  command=("${run[@]}")
}

redis_command() {
  redis_words
  command+=("$HERE/redis.conf" --bind "$ADDRESS" --port "$(port redis)" --dir "$1/data")
}
