# Inside the test machine: 'gabion attach' gives a volume to the kernel's nbd driver; under a mounted
# file system the serving node is killed, frozen and thawed, every node is restarted in turn, and the
# attaching process itself is killed and started again.
# env: RIG_ROUNDS=1 how often; RIG_DATABASE=1 also a PostgreSQL
set -euo pipefail
. "$TOP/deploy/vm/guest/pool.sh"
load="$TOP/bin/ledgerload"
# The log of the attaching process says most.
eval "pool_$(declare -f fail)"
fail() {
	tail -n 60 /run/gabion/attach/v.log || true
	pool_fail "$@"
}
mount_pool /dev/vda
make_pool
g volume create v --size 512M --replicas 3 >/dev/null
until_true 180 "copies of v" redundant v

look() { g attach --list --json | jq -r ".[0].$1"; }
serving() { look state.node.name; }
moved() { [ "$(serving)" != "$1" ] && [ "$(serving)" != "" ] && [ "$(look running)" = true ]; }
died() { [ "$(look running)" = false ]; }
serves() { [ "$(serving)" != "" ]; }
grows() { [ "$(wc -l </out/ledger.1)" -gt "$1" ]; }
# goes_on: the ledger gets further acknowledgements
goes_on() {
	until_true 180 "the ledger goes on" grows $(($(wc -l </out/ledger.1) + 5))
	kill -0 $loader || fail "the load ended by itself"
}
number() { echo "${1#n}"; }
# paused: how long nothing was served at the last move, in ms
paused() { echo $(($(look state.last_pause_ns) / 1000000)); }

phase "attach"
g attach v | tee /tmp/attached
grep -q "through the kernel's nbd driver" /tmp/attached || fail "another kind of device"
mkdir -p /run/udev/rules.d
sed "s,/usr/local/bin/gabion,$GABION," "$TOP/deploy/udev/60-gabion.rules" >/run/udev/rules.d/60-gabion.rules
udevadm test --action=change "/sys/block/$(basename "$(readlink /dev/gabion/v)")" 2>/dev/null | grep -q '^DEVLINKS=.*/dev/gabion/v' ||
	fail "the rule of udev does not name the device"
[ "$(look kind)" = nbd ] || fail "--list says $(look kind)"
case $(cat /sys/block/"$(basename "$(readlink /dev/gabion/v)")"/backend) in gabion:v) ;; *) fail "the device is not marked" ;; esac
g attach v && fail "attached twice"
mkfs.ext4 -q /dev/gabion/v
mkdir -p /mnt/v
mount /dev/gabion/v /mnt/v
dd if=/dev/zero of=/mnt/v/ledger bs=1M count=16 conv=fsync status=none
if [ "${RIG_DATABASE:-0}" = 1 ]; then
	pg_init /mnt/v
	pg_start /mnt/v
	sql -c 'CREATE TABLE ledger (n bigint PRIMARY KEY)'
	for n in $(seq 1 100000); do echo "INSERT INTO ledger VALUES ($n) RETURNING n;"; done >/tmp/inserts
	sql -f /tmp/inserts >>/out/pg.1 &
	database=$!
fi
$load load -device /mnt/v/ledger -blocks 4096 -round 1 -record /out/ledger.1 -depth 4 -flush-every 8 >/tmp/load &
loader=$!
until_true 180 "first acknowledgement" test -s /out/ledger.1

for round in $(seq 1 "${RIG_ROUNDS:-1}"); do
	phase "kill $round"
	was=$(serving) i=$(number "$(serving)")
	kill -KILL "${pids[$i]}"
	until_true 180 "another node than $was serves" moved "$was"
	goes_on
	killed=$(paused)
	start_node "$i"
	until_true 180 "node $i" ready "$i"
	until_true 180 "copies of v" redundant v

	phase "freeze $round"
	was=$(serving) i=$(number "$(serving)")
	kill -STOP "${pids[$i]}"
	until_true 180 "another node than $was serves" moved "$was"
	sleep 4 # past every lease and timeout
	kill -CONT "${pids[$i]}"
	goes_on
	frozen=$(paused)
	until_true 180 "copies of v" redundant v

	phase "restart $round"
	restarted=0
	for i in 1 2 3; do
		before=$(look state.moves)
		kill -TERM "${pids[$i]}"
		wait "${pids[$i]}" || fail "node $i ended with $?"
		until_true 180 "a node serves" serves
		goes_on
		if [ "$(look state.moves)" != "$before" ] && [ "$(paused)" -gt $restarted ]; then restarted=$(paused); fi
		start_node "$i"
		until_true 180 "node $i" ready "$i"
		until_true 180 "copies of v" redundant v
	done
	echo "at $SECONDS s: round $round paused $killed ms (killed), $frozen ms (frozen), $restarted ms (all restarted)," \
		"$(($(look state.longest_pause_ns) / 1000000)) ms at the worst of $(look state.moves) moves"
done
pause=$(($(look state.longest_pause_ns) / 1000000))
# The machine is emulated and may get little of the processor: test/failover is strict.
[ "$pause" -lt 60000 ] || fail "a pause of $pause ms"

phase "grow"
# The device grows under the mounted file system while the load goes on.
size() { blockdev --getsize64 /dev/gabion/v; }
grown() { [ "$(size)" = $((768 << 20)) ]; }
[ "$(size)" = $((512 << 20)) ] || fail "$(size) bytes before it grows"
g volume resize v --size 768M >/dev/null
until_true 180 "a larger device" grown
resize2fs /dev/gabion/v 2>/dev/null || fail "resize2fs"
[ "$(df --output=size -B1M /mnt/v | tail -1)" -gt 650 ] || fail "the file system did not grow"
goes_on

phase "kill the process"
kill -KILL "$(look pid)"
until_true 60 "its death is seen" died
device=$(look device)
began=$SECONDS
g attach v
[ "$(look device)" = "$device" ] || fail "$device was not taken up again"
[ "$(cat /sys/block/"$(basename "$device")"/queue/io_timeout)" = 5000 ] || fail "the kernel repeats late"
goes_on
phase "the ledger went on $((SECONDS - began)) s after the process was started again"

phase "end"
kill -TERM $loader
wait $loader || fail "the load met an error: $(cat /tmp/load)"
cat /tmp/load
if [ "${RIG_DATABASE:-0}" = 1 ]; then
	kill -0 $database || fail "the database met an error"
	kill $database
	last=$(grep -c . /out/pg.1 || true)
	got=$(sql -c "SELECT count(*) FROM ledger WHERE n <= $last")
	[ "$got" = "$last" ] || fail "LOST: of $last acknowledged commits there are $got"
	echo "database verified: $last commits"
	pg_stop /mnt/v
	as_postgres "$PGBIN/pg_checksums" --check -D /mnt/v/data >/dev/null || fail "pg_checksums"
fi
umount /mnt/v
e2fsck -f -n /dev/gabion/v >/dev/null || fail "e2fsck"
mount /dev/gabion/v /mnt/v
$load verify -device /mnt/v/ledger -blocks 4096 -round 1 -record /out/ledger.1 -state /out/state || fail "the ledger is not complete"
g detach v && fail "a mounted volume was detached"
umount /mnt/v
g detach v
[ ! -e /dev/gabion/v ] || fail "the name is still there"
[ ! -e /sys/block/"$(basename "$device")"/pid ] || fail "$device is still connected"

if dmesg | grep -E 'I/O error|hung_task|blocked for more|EXT4-fs error'; then fail "the kernel complains"; fi

stop_pool
echo PASSED
