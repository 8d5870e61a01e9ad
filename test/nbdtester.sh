#!/usr/bin/env bash
# Builds the NBD project's own test client from its source tree and runs its tests against a node:
# throughput of reads, of writes with flushes and FUA, the handshake, and the project's transaction log.
# Its test of long requests (-o) is left out: it asks for 1 MiB and 14 bytes, and a volume has blocks.
# usage: test/nbdtester.sh SOURCE      a source tree of NetworkBlockDevice/nbd
# Needs gcc, pkg-config, libglib2.0-dev.
set -euo pipefail
cd "$(dirname "$0")/.."
source=${1:?usage: test/nbdtester.sh SOURCE}
go build -o bin/gabion ./cmd/gabion
dir=$(mktemp -d /var/tmp/nbdtester-XXXXXX)
node=
trap 'test -n "$node" && kill "$node" && wait "$node" || true; rm -rf "$dir"' EXIT

cat >"$dir/config.h" <<'END'
#define PACKAGE_VERSION "test"
#define VERSION "test"
#define HAVE_SYS_MOUNT_H 1
#define SIZEOF_UNSIGNED_INT 4
#define SIZEOF_UNSIGNED_LONG_INT 8
#define SIZEOF_UNSIGNED_LONG_LONG_INT 8
END
# shellcheck disable=SC2046
gcc -w -D_GNU_SOURCE -I"$dir" -I"$source" -o "$dir/tester" "$source/tests/run/nbd-tester-client.c" "$source/cliserv.c" \
	$(pkg-config --cflags --libs glib-2.0)

bin/gabion node run --dir "$dir/node" --listen 127.0.0.1:0 --nbd 127.0.0.1:0,unix:"$dir/nbd.sock" --http off --iscsi off 2>"$dir/log" &
node=$!
for _ in $(seq 100); do [ -e "$dir/node/run.json" ] && break; sleep 0.1; done
for v in export1 fresh; do bin/gabion --dir "$dir/node" volume create $v --size 64M --replicas 1 >/dev/null; done
port=$(sed -E 's/.*"nbd": *"127.0.0.1:([0-9]+)".*/\1/;t;d' "$dir/node/run.json" | head -1)
[ -n "$port" ] || port=$(grep -oE '"nbd":"127.0.0.1:[0-9]+' "$dir/node/run.json" | grep -oE '[0-9]+$')

failed=0
try() { # name, arguments
	local name=$1
	shift
	if timeout 120 "$dir/tester" "$@" >"$dir/out" 2>&1; then
		echo "ok    $name"
	else
		echo "FAIL  $name"
		tail -5 "$dir/out"
		failed=1
	fi
}
try "reads" -N export1 127.0.0.1 "$port"
try "reads over a unix socket" -N export1 -u "$dir/nbd.sock"
try "writes" -N export1 -w 127.0.0.1 "$port"
try "writes with flushes" -N export1 -w -f 127.0.0.1 "$port"
try "handshake" -h -N export1 127.0.0.1 "$port"
try "a transaction log" -N fresh -i -t "$source/tests/run/integrity-test.tr" 127.0.0.1 "$port"
exit $failed
