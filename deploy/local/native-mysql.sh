# MySQL from Debian sid, which is where Debian keeps it.

mysql_install() {
  debian mysql sid mysql-server-core usr/sbin/mysqld
}

mysql_words() { # fills command with the server and what every start of it shares
  local run root=$CACHE/debian-sid
  suite_run "$CACHE/debian-sid" usr/sbin/mysqld
  command=("${run[@]}" "--defaults-file=$HERE/mysql.cnf" --user=root "--basedir=$root/usr" "--lc-messages-dir=$root/usr/share/mysql"
    "--character-sets-dir=$root/usr/share/mysql/charsets" "--plugin-dir=$root/usr/lib/mysql/plugin")
}

mysql_prepare() {
  local state=$1 command
  if [[ -d $state/data ]]; then return 0; fi
  mysql_words
  step mysql "making the data directory" "$state/log" install_into "$state/data" mysql_initialize ||
    fail mysql "the data directory could not be made" "$state/log"
}

# A server that starts takes away what it believes to be temporary tables of an earlier
# one, so each has a directory of its own for them.
mysql_initialize() {
  mkdir -p "${1%/*}/tmp" && "${command[@]}" "--tmpdir=${1%/*}/tmp" --initialize-insecure "--init-file=$HERE/users.sql" "--datadir=$1"
}

mysql_command() {
  mysql_words
  # A socket path may have 107 bytes, the path of a clone may have more: relative to the data directory.
  # The lock of a server that was killed names a process that may be anybody's by now.
  mkdir -p "$1/tmp" && rm -f "$1/data/mysql.sock.lock"
  command+=("--datadir=$1/data" "--tmpdir=$1/tmp" "--port=$(port mysql)" --bind-address="$ADDRESS" --socket=mysql.sock "--pid-file=$1/data/mysqld.pid")
}
