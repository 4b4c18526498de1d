# No engine: servers that are up already can be used and shown, nothing else. Sourced, never run.

refuse() {
  fail "$1" "nothing here can start or stop it" '' \
    "run as root on a Debian-like machine, or start a container engine that has the compose command"
}

engine_start() { refuse "$1"; }
engine_stop() { refuse "$1"; }
engine_kill() { refuse "$1"; }
engine_logs() { refuse "$1"; }
engine_log() { echo -; }
engine_pid() { echo -; }
engine_orphan() { false; }
engine_clean() { :; }
