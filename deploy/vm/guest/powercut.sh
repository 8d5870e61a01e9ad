# Inside the test machine, one boot of the power-cut rig: bring the pool up as it was left, check every
# acknowledgement of the last round against the disks, then load it until somebody cuts the power.
# usage: powercut.sh ROUND STEP    STEP: first | again | last; ROUND is the one that this boot writes
# env: RIG_DATABASE=1 also a PostgreSQL
set -euo pipefail
round=$1 step=$2
. "$TOP/deploy/vm/guest/pool.sh"
load=$TOP/bin/ledgerload
ledger="-nbd 127.0.0.1:$(nbd_port 1) -export ledger -blocks 4096"
mnt=/mnt/pg
mkdir -p $mnt
# Nothing gets to the disk but by a flush: the kernel's own write-back is put off.
sysctl -q vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=360000
mount_pool /dev/vda

if [ "$step" = first ]; then
	make_pool
	g volume create ledger --size 64M --replicas 3 >/dev/null
	until_true 60 "copies of ledger" redundant ledger
	if [ "$RIG_DATABASE" = 1 ]; then
		g volume create pg --size 384M --replicas 3 >/dev/null
		attach 2 pg /dev/nbd0
		mkfs.ext4 -q /dev/nbd0
		mount /dev/nbd0 $mnt
		pg_init $mnt
		pg_start $mnt
		sql -c 'CREATE TABLE ledger (n bigint PRIMARY KEY); CREATE EXTENSION amcheck'
		sql -c 'CREATE TABLE accounts AS SELECT g AS id, 0 AS balance FROM generate_series(1, 2000) g;
			ALTER TABLE accounts ADD PRIMARY KEY (id); CREATE TABLE history (id int, delta int, at timestamptz)'
	fi
else
	phase "starting $round"
	start_pool
	phase "started $round"
	until_true 60 "export of ledger" nbdinfo "nbd://127.0.0.1:$(nbd_port 1)/ledger"
	$load verify $ledger -round $((round - 1)) -record /out/ledger.$((round - 1)) -state /out/state ||
		fail "the ledger is not complete"
	phase "ledger verified"
	if [ "$RIG_DATABASE" = 1 ]; then
		attach 2 pg /dev/nbd0
		mount /dev/nbd0 $mnt
		pg_start $mnt
		phase "database recovered"
		for r in $(seq 1 $((round - 1))); do
			[ -e /out/pg.$r ] || continue
			last=$(grep -c . /out/pg.$r || true)
			got=$(sql -c "SELECT count(*) FROM ledger WHERE n > ${r}000000 AND n <= ${r}000000 + $last")
			[ "$got" = "$last" ] || fail "LOST: of $last acknowledged commits of round $r there are $got"
			echo "database verified: $last commits of round $r"
		done
		[ "$(sql -c 'SELECT sum(balance) FROM accounts')" = 0 ] || fail "half a transaction was committed"
		phase "commits counted"
		as_postgres "$PGBIN/pg_amcheck" --heapallindexed postgres || fail "pg_amcheck"
		phase "amcheck done"
		pg_stop $mnt
		as_postgres "$PGBIN/pg_checksums" --check -D $mnt/data >/dev/null || fail "pg_checksums"
		umount $mnt
		e2fsck -f -n /dev/nbd0 >/dev/null || fail "e2fsck"
	fi
	phase "verified $round"
	if [ "$step" = last ]; then
		[ "$RIG_DATABASE" = 1 ] && detach /dev/nbd0
		stop_pool
		echo PASSED
		exit 0
	fi
	if [ "$RIG_DATABASE" = 1 ]; then
		mount /dev/nbd0 $mnt
		pg_start $mnt
	fi
fi

if [ "$RIG_DATABASE" = 1 ]; then
	# One commit after the other; a line of the record is written once psql has seen its commit answered.
	for n in $(seq 1 100000); do
		echo "INSERT INTO ledger VALUES (${round}000000 + $n) RETURNING n;"
	done >/tmp/inserts
	sql -f /tmp/inserts | while read -r line; do echo "$line" >>/out/pg.$round; done &
	cat >/tmp/transfer <<'SQL'
\set a random(1, 2000)
\set b random(1, 2000)
\set delta random(1, 100)
BEGIN;
UPDATE accounts SET balance = balance - :delta WHERE id = least(:a, :b);
UPDATE accounts SET balance = balance + :delta WHERE id = greatest(:a, :b);
INSERT INTO history VALUES (:a, :delta, now());
COMMIT;
SQL
	as_postgres "$PGBIN/pgbench" -n -c 2 -T 3600 -f /tmp/transfer >/dev/null 2>&1 &
fi
$load load $ledger -round "$round" -record "/out/ledger.$round" -depth 4 -flush-every 8 &
loader=$!
until_true 60 "first acknowledgement" test -s "/out/ledger.$round"
[ "$RIG_DATABASE" = 1 ] && until_true 60 "first commit" test -s "/out/pg.$round"
phase "loading $round"
wait $loader || fail "the load ended by itself"
fail "the power stayed on"
