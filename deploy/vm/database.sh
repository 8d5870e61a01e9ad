#!/usr/bin/env bash
# Makes an empty PostgreSQL data directory for the test machine, here, where initdb takes a second
# instead of the better part of a minute.
# usage: database.sh [DIR]    leaves DIR/pgdata.tar; default .cache/vm of the tree
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=${1:-$top/.cache/vm}
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
bin=$(echo /usr/lib/postgresql/*/bin)
version=$("$bin/postgres" --version)
if [ "$(cat "$dir/pgdata.version" 2>/dev/null)" = "$version" ] && [ -s "$dir/pgdata.tar" ]; then exit 0; fi
work=$(mktemp -d /var/tmp/gabion-pgdata.XXXXXX)
trap 'rm -rf "$work"' EXIT
chown postgres "$work"
(cd / && LC_ALL=C runuser -u postgres -- "$bin/initdb" -N -D "$work/data" -A trust --data-checksums --wal-segsize=1 --no-instructions >/dev/null)
tar -C "$work" -cf "$dir/pgdata.new" data
mv "$dir/pgdata.new" "$dir/pgdata.tar"
echo "$version" >"$dir/pgdata.version"
