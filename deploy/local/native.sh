# The native engine: distributions unpacked in the user's cache directory and
# started as plain processes. It needs root on a Debian-like machine, because
# debootstrap does, and installs nothing but debootstrap. Sourced, never run.

# Each server file defines SERVER_install (idempotent), SERVER_prepare STATE (make
# the data directory, idempotent) and SERVER_command STATE (fills the array command);
# SERVER_settle, where there is one, waits after the first answer until it is of use.
for file in mysql mariadb kafka elasticsearch redis redis8 valkey prometheus; do
  # shellcheck source=/dev/null
  . "$HERE/native-$file.sh"
done

# --- distributions ----------------------------------------------------------

# have_debootstrap SERVER LOG: the one package that is installed on the machine itself.
have_debootstrap() {
  if command -v debootstrap >/dev/null; then return 0; fi
  step "$1" "installing debootstrap" "$2" apt_debootstrap ||
    fail "$1" "apt-get could not install debootstrap" "$2" "apt-get update && apt-get install debootstrap, then make up again"
}

apt_debootstrap() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=300 update &&
    apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends debootstrap debian-archive-keyring gpgv
}

# debian SERVER SUITE PACKAGES PROGRAM...: packages of a Debian suite and the
# libraries they need, unpacked in $CACHE/debian-SUITE, good once every PROGRAM in
# it tells its version. Nothing is configured or mounted: programs are started
# through the suite's own dynamic linker, see suite_run. A suite that is unpacked
# a second time, with other packages, is SUITE-NAME.
debian() {
  if [[ -d $CACHE/debian-$2 ]]; then return 0; fi
  with_lock "$1" "debian-$2" debian_install "$@"
}

debian_install() {
  local server=$1 suite=${2%%-*} dir=$CACHE/debian-$2 packages=$3 log=$CACHE/log/debian-$2
  if [[ -d $dir ]]; then return 0; fi
  mkdir -p "${log%/*}"
  : >"$log"
  with_lock "$server" apt have_debootstrap "$server" "$log"
  step "$server" "downloading Debian $suite packages of $packages" "$log" \
    install_into "$dir" debian_fetch "$suite" "${@:3}" ||
    fail "$server" "the Debian packages of $packages did not arrive" "$log" "make up again, once the network and the Debian mirror answer"
}

debian_fetch() { # debian_fetch SUITE PACKAGES PROGRAM... DIR
  local suite=$1 packages=$2 dir=${*: -1} programs=("${@:3:$#-3}") deb run program
  debootstrap --variant=minbase --include="$packages" --download-only "$suite" "$dir/debs" || return 1
  for deb in "$dir"/debs/var/cache/apt/archives/*.deb; do
    case ",$packages,lib" in
      *,"$(deb_name "$deb")",*) ;;
      *) if [[ ${deb##*/} != lib* || ${deb##*/} == libperl* ]]; then continue; fi ;;
    esac
    dpkg-deb -x "$deb" "$dir" || return 1
  done
  rm -rf "$dir/debs"
  for program in "${programs[@]}"; do
    suite_run "$dir" "$program"
    "${run[@]}" --version || return 1
  done
}

deb_name() { local file=${1##*/}; echo "${file%%_*}"; }

# suite_run DIR PROGRAM: fills the array run with the words that start a program of
# an unpacked suite with that suite's libraries, without a chroot and its mounts.
suite_run() {
  local root=$1 linker
  for linker in "$root"/usr/lib/*/ld-linux-*.so.* "$root"/lib/*/ld-linux-*.so.* "$root"/usr/lib64/ld-linux-*.so.*; do
    if [[ -f $linker && -x $linker ]]; then break; fi
  done
  local path
  path=$(printf '%s:' "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu)
  run=("$linker" --library-path "${path%:}" "$root/$2")
}

# java17 SERVER: prints a Java home of version 17 or, when there is none, newer.
java17() {
  local home best='' version
  for home in "${JAVA_HOME:-}" /usr/lib/jvm/*17* /usr/lib/jvm/* "$(readlink -f "$(command -v java 2>/dev/null)" 2>/dev/null | sed 's#/bin/java$##')"; do
    if [[ -z $home || ! -x $home/bin/java ]]; then continue; fi
    version=$("$home/bin/java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')
    if [[ $version == 17 ]]; then
      echo "$home"
      return 0
    fi
    if [[ -z $best && ${version:-0} -gt 17 ]]; then best=$home; fi
  done
  if [[ -z $best ]]; then
    fail "$1" "no Java 17 or newer in JAVA_HOME, /usr/lib/jvm or PATH" '' "apt-get install openjdk-17-jdk-headless, then make up again"
  fi
  echo "$best"
}

# maven SERVER DIR TEXT GOAL...: a distribution out of Maven, in DIR. Maven's own
# repository does not like two writers, hence one at a time.
maven() {
  local server=$1 dir=$2 text=$3 log=$CACHE/log/$1
  shift 3
  if [[ -d $dir ]]; then return 0; fi
  if ! command -v mvn >/dev/null; then
    fail "$server" "mvn is not on PATH" '' "apt-get install maven, then make up again"
  fi
  mkdir -p "$CACHE/log"
  : >"$log"
  with_lock "$server" maven step "$server" "$text" "$log" install_into "$dir" "$@" ||
    fail "$server" "Maven could not bring it" "$log" "make up again, once the network and the Maven repository answer"
}

# --- engine -----------------------------------------------------------------

engine_start() {
  local server=$1 state command=() pid
  state=$(state_of "$server")
  if ! pid=$(alive "$server"); then
    "${server}_install"
    mkdir -p "$state"
    "${server}_prepare" "$state"
    "${server}_command" "$state"
    say "$server" "starting, data in $state"
    spawn "$server" "$state" "${command[@]}"
    pid=$!
  else
    say "$server" "is already starting as process $pid"
  fi
  ready "$server" "$pid" "$state/log"
}

# ready SERVER PID LOG: waits until it answers; a process that ends meanwhile is a failure.
ready() {
  local server=$1 pid=$2 log=$3 began=$SECONDS next=10 version
  until version=$(probe "$server"); do
    if ! born "$pid" >/dev/null; then fail "$server" "it ended while starting" "$log"; fi
    if ((SECONDS - began >= 300)); then
      fail "$server" "process $pid does not answer on $ADDRESS:$(port "$server") after 300s" "$log" "deploy/local/servers kill $server, then make up again"
    fi
    if ((SECONDS - began >= next)); then
      say "$server" "starting: no answer yet after $((SECONDS - began))s"
      next=$((next + 10))
    fi
    sleep 0.2
  done
  if declare -F "${server}_settle" >/dev/null; then "${server}_settle"; fi
  say "$server" "up on $ADDRESS:$(port "$server"), version $version"
}

# processes SERVER: what has to end for the server to be gone. A listener nobody
# recorded counts only if it answers as that server.
processes() {
  local server=$1 pid listening
  pid=$(alive "$server" || true)
  listening=$(listener "$(port "$server")" || true)
  if [[ -n $listening && -z $pid ]] && ! probe "$server" >/dev/null; then
    fail "$server" "process $listening holds port $(port "$server") and does not answer as $server: left alone" '' "end process $listening yourself"
  fi
  printf '%s\n' $pid $listening | sort -u
}

# gone PORT PID...: a process whose first thread has ended may still hold its port with another.
gone() {
  local port=$1 pid
  shift
  for pid in "$@"; do
    if born "$pid" >/dev/null; then return 1; fi
  done
  ! is_open "$port"
}

end() { # end SERVER SIGNAL
  local server=$1 signal=$2 pids pid began=$SECONDS next=10
  pids=$(processes "$server") || exit 1
  if [[ -z $pids ]]; then
    say "$server" "is down"
    return 0
  fi
  for pid in $pids; do kill "-$signal" "$pid" 2>/dev/null || true; done
  # shellcheck disable=SC2086
  until gone "$(port "$server")" $pids; do
    if ((SECONDS - began >= 60)) && [[ $signal != KILL ]]; then
      say "$server" "does not stop on SIG$signal: killing it"
      for pid in $pids; do kill -KILL "$pid" 2>/dev/null || true; done
      signal=KILL
    fi
    if ((SECONDS - began >= next)); then
      say "$server" "stopping: still there after $((SECONDS - began))s"
      next=$((next + 10))
    fi
    sleep 0.1
  done
  say "$server" "down"
}

engine_stop() { end "$1" TERM; }
engine_kill() { end "$1" KILL; }
engine_log() { echo "$(state_of "$1")/log"; }
engine_logs() { tail -n "${LINES_WANTED:-100}" -- "$(engine_log "$1")"; }
engine_pid() { # the one that listens, else the one that is starting
  local pid
  pid=$(listener "$(port "$1")") || pid=$(alive "$1") || pid=-
  echo "$pid"
}

# engine_orphan SERVER: true when the server runs on a data directory that is gone,
# as it does after its clone was deleted.
engine_orphan() {
  alive "$1" >/dev/null && [[ ! -d $(recorded "$1" state) ]]
}

engine_clean() {
  rm -rf -- "${STATE_ROOT:?}"
  echo "deleted $STATE_ROOT"
}
