# The compose engine: the same servers as containers, for people without root.
# Containers and volumes belong to the project named in compose.yaml, not to a
# clone, so every clone acts on the same ones. Sourced, never run.

if ((OFFSET != 0)); then
  echo "LOCKSTEP_PORT_OFFSET is for native servers; compose.yaml has fixed ports" >&2
  exit 2
fi

# compose_do SERVER TEXT WORD...: one compose command about one server.
compose_do() {
  local server=$1 text=$2 log=$STATE_ROOT/$1/log
  shift 2
  mkdir -p "${log%/*}"
  step "$server" "$text" "$log" "${compose[@]}" "$@" "$server" ||
    fail "$server" "$text did not work" "$log" "make up again; ${compose[*]} logs $server"
}

engine_start() {
  local version
  compose_do "$1" "pulling and starting" up --detach --wait --no-recreate
  if ! version=$(probe "$1"); then
    fail "$1" "its container is healthy, yet nothing answers as $1 on $ADDRESS:$(port "$1")"
  fi
  say "$1" "up on $ADDRESS:$(port "$1"), version $version"
}

engine_stop() { compose_do "$1" "stopping" stop; }
engine_kill() { compose_do "$1" "killing" kill --signal KILL; }
engine_logs() { "${compose[@]}" logs --no-log-prefix --tail "${LINES_WANTED:-100}" "$1"; }
engine_log() { echo "${compose[*]:0:2} logs $1"; }
engine_pid() { echo container; }
engine_orphan() { false; }
engine_clean() { "${compose[@]}" --profile '*' down --volumes; }
