# Valkey from Debian sid.

valkey_install() { debian valkey sid-valkey valkey-server,valkey-tools usr/bin/valkey-server; }

valkey_prepare() { mkdir -p "$1/data"; }

valkey_words() {
  local run
  suite_run "$CACHE/debian-sid-valkey" usr/bin/valkey-server
  command=("${run[@]}")
}

valkey_command() {
  valkey_words
  command+=("$HERE/redis.conf" --bind "$ADDRESS" --port "$(port valkey)" --dir "$1/data")
}
