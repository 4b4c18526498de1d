# What every part of deploy/local/servers leans on: the table of servers,
# progress, locks, processes and probes. Sourced, never run.

readonly ADDRESS=127.0.0.1
readonly DEFAULT_SERVERS=(mysql kafka elasticsearch redis)
readonly ALL_SERVERS=(mysql mariadb kafka elasticsearch redis redis8 valkey prometheus)

# The one table of versions and ports. compose.yaml and internal/testenv repeat
# what they cannot read from here; compose_test.go holds them to it.
declare -rA VERSION=(
  [mysql]=9.7
  [mariadb]=10.11
  [kafka]=4.1.0
  [elasticsearch]=8.19.7
  [redis]=7.0
  [redis8]=8.0
  [valkey]=9.1
  [prometheus]=v2.42.0
)
declare -rA BASE_PORT=(
  [mysql]=13306
  [mariadb]=13307
  [kafka]=19092
  [elasticsearch]=19200
  [redis]=16379
  [redis8]=16380
  [valkey]=16381
  [prometheus]=19090
)
readonly KAFKA_HEAP="-Xms256m -Xmx512m"
readonly ELASTICSEARCH_HEAP="-Xms1g -Xmx1g"

# LOCKSTEP_PORT_OFFSET moves every port, and the state with it, so that a second
# set of servers can live beside the first.
readonly OFFSET=${LOCKSTEP_PORT_OFFSET:-0}
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/lockstep
STATE_ROOT=$ROOT/.local
if ((OFFSET != 0)); then STATE_ROOT=$ROOT/.local/offset-$OFFSET; fi
readonly STATE_ROOT

port() { echo $((BASE_PORT[$1] + OFFSET)); }

# --- progress ---------------------------------------------------------------

readonly BEGAN=${LOCKSTEP_BEGAN:-$(date +%s)}

say() { # say SERVER TEXT...: one line with the seconds since the command began
  printf '%4ss  %-13s  %s\n' $(($(date +%s) - BEGAN)) "$1" "${*:2}"
}

# fail SERVER SENTENCE [LOG]: names the server, shows its last words, says what to try.
fail() {
  {
    say "$1" "FAILED: $2"
    if [[ -n ${3:-} && -s $3 ]]; then
      printf '       last lines of %s:\n' "$3"
      tail -n 15 -- "$3" | sed 's/^/       | /'
    fi
    printf '       try: %s\n' "${4:-make up again; deploy/local/servers logs $1; make clean to begin from nothing}"
  } >&2
  exit 1
}

# step SERVER TEXT LOG COMMAND...: runs the command with its output in LOG and
# speaks at the beginning, every ten seconds, and at the end.
step() {
  local server=$1 text=$2 log=$3 began=$SECONDS next=10 pid
  shift 3
  say "$server" "$text"
  "$@" >>"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    if ((SECONDS - began >= next)); then
      say "$server" "$text: still at it after $((SECONDS - began))s"
      next=$((next + 10))
    fi
  done
  if ! wait "$pid"; then return 1; fi
  say "$server" "$text: done in $((SECONDS - began))s"
}

# --- locks and files --------------------------------------------------------

# with_lock SERVER NAME COMMAND...: one holder of NAME per user of this machine.
with_lock() {
  local server=$1 name=$2 fd status
  shift 2
  mkdir -p "$CACHE/locks"
  exec {fd}>"$CACHE/locks/$name"
  if ! flock -n "$fd"; then
    say "$server" "waiting for another command that holds $name"
    flock -w 900 "$fd" || fail "$server" "another command has held $CACHE/locks/$name for 15 minutes"
  fi
  "$@"
  status=$?
  exec {fd}>&-
  return $status
}

# install_into DIR COMMAND...: runs COMMAND with a fresh directory as its last
# argument, and only when it succeeds does that directory become DIR. Whatever is
# left of an interrupted attempt is thrown away, by whoever holds the lock next.
install_into() {
  local dir=$1
  shift
  if [[ -d $dir ]]; then return 0; fi
  rm -rf -- "$dir".part
  mkdir -p -- "$dir".part
  "$@" "$dir".part || return 1
  sync -f -- "$dir".part
  mv -T -- "$dir".part "$dir"
}

# --- processes --------------------------------------------------------------

# born PID: the start time of a process, which tells it from a later one with the same id.
born() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  # shellcheck disable=SC2086
  set -- $stat
  if [[ $1 == Z ]]; then return 1; fi
  echo "${20}"
}

# A server's record: which process it is, and which state directory it uses, so
# that any clone can stop it and start it again on the same data.
record() { echo "$CACHE/running/$1-$(port "$1")"; }

recorded() { # recorded SERVER pid|born|state|version
  sed -n "s/^$2=//p" "$(record "$1")" 2>/dev/null
}

# alive SERVER: prints the recorded process if it is still the same one.
alive() {
  local pid
  pid=$(recorded "$1" pid)
  if [[ -z $pid || $(born "$pid") != "$(recorded "$1" born)" ]]; then return 1; fi
  echo "$pid"
}

# listener PORT: prints the process that listens there, from /proc alone.
listener() {
  local hex inode
  hex=$(printf '%04X' "$1")
  inode=$(awk -v p=":$hex\$" '$2 ~ p && $4 == "0A" { print $10; exit }' /proc/net/tcp /proc/net/tcp6 2>/dev/null)
  if [[ -z $inode ]]; then return 1; fi
  # Processes end while find looks at them, so its status says nothing.
  inode=$(find /proc/[0-9]*/fd -lname "socket:\\[$inode\\]" 2>/dev/null | sed -n '1s#^/proc/\([0-9]*\)/.*#\1#p') || true
  if [[ -z $inode ]]; then return 1; fi
  echo "$inode"
}

# state_of SERVER: the recorded state directory while it exists, else this clone's own.
state_of() {
  local state
  state=$(recorded "$1" state)
  if [[ -n $state && -d $state ]]; then echo "$state"; else echo "$STATE_ROOT/$1"; fi
}

# spawn SERVER STATE COMMAND...: starts a server that outlives us: a session of
# its own, no descriptor of ours, its output in STATE/log. It writes its record
# itself before it becomes the server, so there is no moment in which it runs unknown.
spawn() {
  local server=$1 state=$2 file
  shift 2
  file=$(record "$server")
  mkdir -p "${file%/*}"
  if [[ $(stat -c %s "$state/log" 2>/dev/null || echo 0) -gt 20000000 ]]; then
    mv -f "$state/log" "$state/log.1"
  fi
  # shellcheck disable=SC2016
  setsid bash -c '
    for fd in /proc/$$/fd/*; do
      fd=${fd##*/}
      if ((fd > 2 && fd != 255)); then eval "exec $fd>&-"; fi
    done
    file=$1 state=$2 version=$3
    shift 3
    stat=$(</proc/$$/stat)
    stat=(${stat##*) })
    printf "pid=%s\nborn=%s\nstate=%s\nversion=%s\n" $$ "${stat[19]}" "$state" "$version" >"$file.$$"
    mv -f "$file.$$" "$file"
    cd / && exec "$@"
  ' lockstep-server "$file" "$state" "${VERSION[$server]}" "$@" </dev/null >>"$state/log" 2>&1 &
}

# --- probes -----------------------------------------------------------------

# talk PORT BYTES WANT: sends BYTES (printf escapes) and prints up to WANT bytes of the answer.
talk() {
  # shellcheck disable=SC2016
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" && { [[ -z $2 ]] || printf "$2" >&3; } && head -c "$3" <&3' \
    "$ADDRESS" "$1" "$2" "$3" 2>/dev/null
}

is_open() { (exec 3<>"/dev/tcp/$ADDRESS/$1") 2>/dev/null; }

# probe SERVER: prints the version and returns 0 when the expected server answers,
# 1 when nobody listens, 2 when somebody listens and does not answer as that server.
probe() {
  local version
  if ! is_open "$(port "$1")"; then return 1; fi
  version=$("probe_$1" "$(port "$1")") || true
  if [[ -z $version ]]; then return 2; fi
  echo "$version"
}

greeting() { # the version in the first packet of a MySQL or MariaDB server
  talk "$1" '' 60 | tr '\0' '\n' | grep -aoE '[0-9]+\.[0-9]+\.[0-9]+[-+~.A-Za-z0-9]*' | head -1
}
probe_mysql() { greeting "$1" | grep -v MariaDB; }
probe_mariadb() { greeting "$1" | grep MariaDB | sed 's/^5\.5\.5-//'; }

probe_kafka() { # ApiVersions, correlation 7; the broker does not tell its version
  local answer
  answer=$(talk "$1" '\x00\x00\x00\x12\x00\x12\x00\x00\x00\x00\x00\x07\x00\x08lockstep' 10 | od -An -tx1 | tr -d ' \n')
  if [[ ${answer:8} == 000000070000 ]]; then recorded kafka version | grep . || echo unknown; fi
}

probe_elasticsearch() {
  talk "$1" 'GET /_nodes/_local?filter_path=nodes.*.version HTTP/1.0\r\n\r\n' 4096 |
    grep -oE '"version":"[^"]+"' | cut -d'"' -f4
}

probe_redis() {
  # While it loads its data it tells its version but takes no command.
  talk "$1" 'PING\r\nINFO server\r\n' 200 | tr -d '\r' | sed -n '1{/^+PONG/!q};s/^redis_version://p'
}
probe_redis8() { probe_redis "$1"; }
# A Valkey says which Redis it is compatible with as well.
probe_valkey() {
  talk "$1" 'PING\r\nINFO server\r\n' 200 | tr -d '\r' | sed -n '1{/^+PONG/!q};s/^valkey_version://p'
}

probe_prometheus() {
  talk "$1" 'GET /api/v1/status/buildinfo HTTP/1.0\r\n\r\n' 4096 | grep -oE '"version":"[^"]+"' | cut -d'"' -f4
}
