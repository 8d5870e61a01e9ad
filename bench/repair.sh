#!/usr/bin/env bash
# What repair costs the foreground, and how fast it is. Five nodes on one disk, a volume of three copies with DATA
# (3G) in it; one node is lost for good. While its copies are made anew, a client writes 4 KiB at a time to another volume and
# flushes each: in windows of WINDOW (3) seconds that alternate between repair going on and repair paused by the
# operator, so that both see the same neighbours on the machine. Prints the windows, their medians, MiB/s of copies, and
# the percentiles of all flushes of either kind of window. The client is bench/flusher; fio only fills the volume.
# Before that, ALONE (3) seconds without a client: what the machine allows. RATE limits repair ('auto': none), IOPS
# the client (0: it writes again as soon as it may, and so keeps two cores busy by itself).
# With WHOLE=1 there are no windows: the client runs for 10 s before the repair, then until it is done, then for 10 s
# more; that is what an operator would see of one lost brick, with the time in which the rate is found.
# usage: bench/repair.sh     env: DATA WINDOW ROUNDS ALONE WHOLE RATE IOPS GABION_RIG_DIR GABION_BIN
set -euo pipefail
cd "$(dirname "$0")/.."
test/needs.sh fio jq
bin=${GABION_BIN:-bin/gabion}
[ -n "${GABION_BIN:-}" ] || go build -trimpath -o "$bin" ./cmd/gabion
window=${WINDOW:-3}
dir=$(mktemp -d "${GABION_RIG_DIR:-/var/tmp}/gabion-repair-XXXXXX")
go build -trimpath -o "$dir/flusher" ./bench/flusher
pids=()
trap 'for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$dir"' EXIT

start() { # node, arguments
	local n=$1
	shift
	"$bin" node run --dir "$dir/n$n" --name "n$n" --listen 127.0.0.1:0 --nbd 127.0.0.1:0 --http off --iscsi off "$@" >"$dir/n$n.log" 2>&1 &
	pids[n]=$!
	for _ in $(seq 200); do
		[ -e "$dir/n$n/run.json" ] && return
		sleep 0.1
	done
	tail -3 "$dir/n$n.log"
	exit 1
}
g() { "$bin" --dir "$dir/n1" "$@"; }
health() { g status --json | jq -r ".volumes[] | select(.name == \"$1\") | .health"; }
left() { g status --json | jq -r '[.volumes[] | select(.name == "data") | .repair.bytes // 0] | add'; }
await_ok() {
	for _ in $(seq 200); do
		[ "$(health data)" = ok ] && return
		sleep 0.3 # asking costs the cores something
	done
	echo "not redundant after a minute" >&2
	exit 1
}
# foreground: flush p50, p99 in ms, and flushes per second, of so many seconds; all of them go to a file
foreground() {
	"$dir/flusher" -node "$(jq -r .nbd "$dir/n1/run.json")" -volume fg -rate "${IOPS:-0}" -for "$1s" -log "$dir/flushes.$2"
}
percentile() { # of all flushes of one kind of window, in ms
	sort -n "$dir/flushes.$1" | awk -v q="$2" '{ v[NR] = $1 } END { printf "%.2f", v[int((NR - 1) * q / 100) + 1] / 1e6 }'
}
# whole: one repair to its end, with a client before it, beside it and after it
whole() {
	foreground 10 off >/dev/null
	g pool set repair=on >/dev/null
	local before after began took client
	"$dir/flusher" -node "$(jq -r .nbd "$dir/n1/run.json")" -volume fg -rate "${IOPS:-0}" -for 300s -log "$dir/flushes.on" >/dev/null &
	client=$!
	before=$(left)
	began=$(date +%s%N)
	after=$before
	while [ "$after" != 0 ]; do # who asks takes a core for as long as dozens of flushes: so seldom, and last in the queue
		sleep "$(awk -v left="$after" 'BEGIN { s = left / 300e6; print s < 0.5 ? 0.5 : s }')"
		after=$(renice -n 19 "$BASHPID" >/dev/null && left)
		if ((($(date +%s%N) - began) / 1000000000 > 280)); then
			echo "$after bytes are still to copy after 280 s" >&2
			exit 1
		fi
	done
	took=$((($(date +%s%N) - began) / 1000000))
	kill -TERM "$client"
	wait "$client"
	foreground 10 off >/dev/null
	echo "$((before >> 20)) MiB copied beside the client in $took ms, $(((before >> 10) * 1000 / took >> 10)) MiB/s;" \
		"all flushes: p50 $(percentile off 50) and $(percentile on 50) ms, p99 $(percentile off 99) and $(percentile on 99) ms," \
		"$(wc -l <"$dir/flushes.on") of them beside it"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : "-" }'; }

start 1
uri=nbd://$(jq -r .nbd "$dir/n1/run.json")
token=$(g pool token)
for n in 2 3 4 5; do start "$n" --join "$(jq -r .listen "$dir/n1/run.json")" --token "$token"; done
g pool set repair-rate="${RATE:-auto}" >/dev/null
g volume create data --size 8G --replicas 3 >/dev/null
g volume create fg --size 256M --replicas 3 >/dev/null
fio --name=fill --ioengine=nbd --uri="$uri/data" --rw=write --bs=1M --size="${DATA:-3g}" --iodepth=4 --refill_buffers \
	--end_fsync=1 >/dev/null
await_ok
sync -f "$dir"
echo "disk alone, one stream: $(dd if=/dev/zero of="$dir/dd" bs=1M count=1000 conv=fdatasync 2>&1 | tail -1 | awk -F, '{ print $NF }')"
rm "$dir/dd"
foreground 2 first >/dev/null # what is fresh is slow
g pool set repair=off >/dev/null
kill -9 "${pids[5]}"
wait "${pids[5]}" 2>/dev/null || true
sleep 3
g node lost n5 >/dev/null
for _ in $(seq 100); do [ "$(left)" != 0 ] && break; sleep 0.1; done
echo "to copy: $(($(left) >> 20)) MiB"
# copying begins slowly; so the first second does not count
g pool set repair=on >/dev/null
sleep 1
before=$(left)
began=$(date +%s%N)
sleep "${ALONE:-3}"
after=$(left)
took=$((($(date +%s%N) - began) / 1000000))
g pool set repair=off >/dev/null
echo "nobody else there: $((((before - after) >> 10) * 1000 / took >> 10)) MiB/s"
if [ -n "${WHOLE:-}" ]; then
	whole
	exit
fi
printf '%-10s %10s %10s %8s %10s\n' window "p50 ms" "p99 ms" iops "MiB/s"
for r in $(seq "${ROUNDS:-8}"); do
	for what in off on; do
		g pool set repair=$what >/dev/null
		before=$(left)
		began=$(date +%s%N)
		f=$(foreground "$window" $what)
		after=$(left)
		took=$((($(date +%s%N) - began) / 1000000))
		echo "$what $f $((((before - after) >> 10) * 1000 / took >> 10))" | tee -a "$dir/result" | xargs printf '%-10s %10.2f %10.2f %8.0f %10d\n'
		[ "$after" != 0 ] || break 2
	done
done
for what in off on; do
	echo "median, repair $what: p50 $(awk "\$1 == \"$what\" { print \$2 }" "$dir/result" | median) ms," \
		"p99 $(awk "\$1 == \"$what\" { print \$3 }" "$dir/result" | median) ms," \
		"copies $(awk "\$1 == \"$what\" { print \$5 }" "$dir/result" | median) MiB/s;" \
		"all flushes: p50 $(percentile $what 50) ms, p99 $(percentile $what 99) ms"
done
