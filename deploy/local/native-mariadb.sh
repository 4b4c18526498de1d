# MariaDB from Debian bookworm, whose package also brings Redis.

bookworm() {
  # redis-tools holds the program that redis-server is a link to.
  debian "$1" bookworm mariadb-server-core,redis-server,redis-tools usr/sbin/mariadbd usr/bin/redis-server
}

mariadb_install() { bookworm mariadb; }

mariadb_words() {
  local run root=$CACHE/debian-bookworm
  suite_run "$CACHE/debian-bookworm" usr/sbin/mariadbd
  command=("${run[@]}" "--defaults-file=$HERE/mariadb.cnf" --user=root "--basedir=$root/usr" "--lc-messages-dir=$root/usr/share/mysql"
    "--character-sets-dir=$root/usr/share/mysql/charsets" "--plugin-dir=$root/usr/lib/mysql/plugin")
}

mariadb_prepare() {
  local state=$1 command
  if [[ -d $state/data ]]; then return 0; fi
  mariadb_words
  step mariadb "making the data directory" "$state/log" install_into "$state/data" mariadb_initialize ||
    fail mariadb "the data directory could not be made" "$state/log"
}

# What mariadb-install-db does, save for the sys schema and for its users: the
# anonymous ones would shadow everybody whose host is %, and without @auth_root_socket
# so would a root@127.0.0.1 without a password.
mariadb_initialize() {
  local share=$CACHE/debian-bookworm/usr/share/mysql
  mkdir "$1/mysql" && mkdir -p "${1%/*}/tmp" || return 1 # see mysql_initialize
  {
    echo "use mysql;"
    echo "set @auth_root_socket = 'root';"
    cat "$share"/mysql_system_tables.sql "$share"/mysql_performance_tables.sql "$share"/mysql_system_tables_data.sql
    echo "flush privileges;"
    cat "$HERE/users.sql"
  } | "${command[@]}" --bootstrap --skip-log-bin "--datadir=$1" "--tmpdir=${1%/*}/tmp"
}

mariadb_command() {
  mariadb_words
  mkdir -p "$1/tmp"
  command+=("--datadir=$1/data" "--tmpdir=$1/tmp" "--port=$(port mariadb)" --bind-address="$ADDRESS" --socket=mysql.sock "--pid-file=$1/data/mariadbd.pid")
}
