# Inside the test machine: a stock kernel attaches volumes of a pool of three nodes, puts ext4 and xfs
# on them, runs PostgreSQL, trims, detaches, and finds the data again through another node.
set -euo pipefail
. "$TOP/deploy/vm/guest/pool.sh"
mount_pool /dev/vda
make_pool
g volume create pg --size 512M --replicas 3
g volume create files --size 512M --replicas 3
until_true 60 "copies of pg" redundant pg

phase "ext4"
attach 1 pg /dev/nbd0
mkfs.ext4 -q /dev/nbd0
mkdir -p /mnt/pg /mnt/files
mount /dev/nbd0 /mnt/pg
phase "database"
pg_init /mnt/pg
phase "pgbench"
pg_start /mnt/pg
as_postgres "$PGBIN/pgbench" -i -q -s 1 2>/dev/null
as_postgres "$PGBIN/pgbench" -n -c 2 -t 40 | grep -E 'processed|failed|tps'
[ "$(sql -c 'SELECT count(*) FROM pgbench_history')" = 80 ] || fail "transactions are missing"
phase "pg_stop, checksums, fsck"
pg_stop /mnt/pg
as_postgres "$PGBIN/pg_checksums" --check -D /mnt/pg/data >/dev/null || fail "pg_checksums"
umount /mnt/pg
e2fsck -f -n /dev/nbd0 >/dev/null || fail "e2fsck"
detach /dev/nbd0

phase "xfs"
attach 1 files /dev/nbd1
mkfs.xfs -q /dev/nbd1
mount /dev/nbd1 /mnt/files
head -c 6M /dev/urandom >/mnt/files/a
(cd /mnt/files && sha256sum a >sum)
fstrim -v /mnt/files
umount /mnt/files
detach /dev/nbd1

phase "the other node's export"
attach 2 files /dev/nbd1
xfs_repair -n /dev/nbd1 >/dev/null 2>&1 || fail "xfs_repair finds damage"
mount /dev/nbd1 /mnt/files
(cd /mnt/files && sha256sum -c sum) || fail "the file changed"
rm /mnt/files/a
fstrim -v /mnt/files
umount /mnt/files
detach /dev/nbd1
g status
complaints() { dmesg | grep -E "$1|hung_task|blocked for more"; }
if complaints 'I/O error|nbd.*(timed out|error)'; then fail "the kernel complains"; fi

phase "nbd-client -persist"
# Its node dies: what docs/ATTACH.md says of it, and how to go on at another node.
until_true 30 "attach files" nbd-client 127.0.0.1 "$(nbd_port 2)" /dev/nbd1 -N files -b 4096 -persist -nonetlink -timeout 5
write_one() { dd if=/dev/zero of=/dev/nbd1 bs=4k count=1 oflag=direct conv=notrunc status=none; }
ended() { ! pgrep -f 'nbd-client.*/dev/nbd1'; }
write_one || fail "a write while its node is well"
kill -KILL "${pids[2]}"
until_true 30 "the end of the client's process, which does not come back" ended
if write_one 2>/dev/null; then fail "nbd-client -persist has connected again: tell so in docs/ATTACH.md"; fi
nbd-client -d /dev/nbd1 || true
attach 1 files /dev/nbd1
write_one || fail "a write at another node"
detach /dev/nbd1

phase "stop"
stop_pool 1 3
phase "stopped"
if complaints 'EXT4-fs error|XFS.*error'; then fail "the kernel complains"; fi
echo PASSED
