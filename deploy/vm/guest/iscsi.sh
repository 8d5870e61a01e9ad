# Inside the test machine: open-iscsi discovers a volume of a pool of three nodes, logs in to two of
# them with mutual CHAP and digests, and dm-multipath puts one disk over both. sg3-utils agree with the
# standards; xfs and ext4 live on it, it grows under them, and fio, records and PostgreSQL go on while
# the node that holds it is killed.
set -euo pipefail
. "$TOP/deploy/vm/guest/pool.sh"
mount_pool /dev/vda
make_pool
for m in iscsi_tcp sd_mod scsi_dh_alua dm_multipath dm_round_robin; do modprobe $m || fail "no module $m"; done

phase "discovery"
me=iqn.2026-11.storage.gabion.test:vm
target=iqn.2026-11.storage.gabion:gabion:pg
mkdir -p /etc/iscsi /run/lock/iscsi /var/lib/iscsi
echo "InitiatorName=$me" >/etc/iscsi/initiatorname.iscsi
echo "iscsid.startup = /bin/true" >/etc/iscsi/iscsid.conf
echo "a secret of the vm" >/root/vm.secret
echo "a secret of the disk" >/root/disk.secret
g volume create pg --size 640M --replicas 3
g volume create other --size 64M
g volume export set pg --initiator $me --chap-user vm --chap-secret /root/vm.secret --mutual-user disk --mutual-secret /root/disk.secret
g volume export set other --initiator iqn.2026-11.storage.gabion.test:somebody-else
until_true 60 "copies of pg" redundant pg
iscsid -f >/tmp/iscsid.log 2>&1 &
until_true 20 "iscsid" iscsiadm -m iface
until_true 60 "every portal" sh -c "[ \$(iscsiadm -m discovery -t sendtargets -p 127.0.0.1:$(iscsi_port 1) | grep -c $target) = 3 ]"
if iscsiadm -m node | grep other; then fail "a volume of somebody else is shown"; fi
if iscsiadm -m node -T $target -p 127.0.0.1:"$(iscsi_port 1)" --login; then fail "logged in without a proof"; fi
set_node() { iscsiadm -m node -T $target -o update -n "$1" -v "$2"; }
set_node node.session.auth.authmethod CHAP
set_node node.session.auth.username vm
set_node node.session.auth.password "$(cat /root/vm.secret)"
set_node node.session.auth.username_in disk
set_node node.session.auth.password_in "$(cat /root/disk.secret)"
set_node 'node.conn[0].iscsi.HeaderDigest' CRC32C
set_node 'node.conn[0].iscsi.DataDigest' CRC32C
set_node node.session.timeo.replacement_timeout 2
set_node 'node.conn[0].timeo.noop_out_interval' 0
set_node 'node.conn[0].timeo.noop_out_timeout' 0

# disk_of PORT: the kernel's name of the disk behind that portal
disk_of() {
	local c s
	for c in /sys/class/iscsi_connection/*; do
		if [ "$(cat "$c/persistent_port")" = "$1" ]; then
			s=$(basename "$c")
			s=${s#connection}
			ls /sys/class/iscsi_session/session"${s%%:*}"/device/target*/*/block 2>/dev/null | head -1
			return
		fi
	done
}
has_disk() { [ -b "/dev/$(disk_of "$1")" ]; }
for i in 1 2; do
	phase "login $i"
	iscsiadm -m node -T $target -p 127.0.0.1:"$(iscsi_port $i)" --login
	until_true 60 "disk of node $i" has_disk "$(iscsi_port $i)"
done
iscsiadm -m session -P 2 | grep -E 'Digest|username_in|Current Portal'
[ "$(iscsiadm -m session -P 2 | grep -cE '(Header|Data)Digest: CRC32C')" = 4 ] || fail "no digests"
a=/dev/$(disk_of "$(iscsi_port 1)") b=/dev/$(disk_of "$(iscsi_port 2)")

phase "sg3-utils"
sg_inq "$a"
dd if=/dev/zero of="$a" bs=1M count=4 oflag=direct status=none # node 1 holds it now
[ "$(sg_vpd -p di "$a" | grep -A1 NAA)" = "$(sg_vpd -p di "$b" | grep -A1 NAA)" ] || fail "two names of one disk"
sg_rtpg -d "$a" | grep -E 'asymmetric access|Relative'
sg_opcodes "$a" >/dev/null || fail "sg_opcodes"
head -c 512 /dev/zero >/tmp/caw
head -c 512 /dev/urandom >>/tmp/caw
sg_compare_and_write --in=/tmp/caw --lba=8 --num=1 "$a" || fail "compare and write"
if sg_compare_and_write --in=/tmp/caw --lba=8 --num=1 "$a" 2>/dev/null; then fail "a miscompare passed"; fi
dd if="$a" of=/tmp/got bs=512 skip=8 count=1 iflag=direct status=none
tail -c 512 /tmp/caw | cmp - /tmp/got || fail "compare and write wrote something else"
sg_unmap --lba=8 --num=8 "$a" || fail "unmap"
blkdiscard -o 1M -l 1M "$a" || fail "blkdiscard"
cmp -n 4M "$a" /dev/zero || fail "what was unmapped is not zero"
sg_persist --out --register --param-sark=0x11 "$a" >/dev/null
sg_persist --out --register --param-sark=0x22 "$b" >/dev/null # through the standby port
sg_persist --out --reserve --param-rk=0x11 --prout-type=1 "$a" >/dev/null || fail "reserve"
sg_persist --in --read-keys "$b" | grep -q 0x11 || fail "the other port does not know the key"
sg_persist --in --read-reservation "$b" | grep -qi "write exclusive" || fail "the other port does not know the reservation"
sg_persist --out --preempt --param-rk=0x22 --param-sark=0x11 --prout-type=1 "$b" >/dev/null || fail "preempt through the other port"
if dd if=/dev/zero of="$a" bs=4k count=1 oflag=direct status=none 2>/dev/null; then fail "a preempted initiator port writes"; fi
sg_persist --out --clear --param-rk=0x22 "$b" >/dev/null || fail "clear"
dd if=/dev/zero of="$a" bs=4k count=1 oflag=direct status=none || fail "nobody reserves it and it cannot be written"

phase "multipath"
paths() {
	echo "0 $(blockdev --getsz "$a") multipath 1 queue_if_no_path 1 alua 2 1" \
		"round-robin 0 1 1 $(cat /sys/block/"$(basename "$a")"/dev) 1 round-robin 0 1 1 $(cat /sys/block/"$(basename "$b")"/dev) 1"
}
dmsetup create mp --table "$(paths)"
dmsetup mknodes
disk=/dev/mapper/mp
mkfs.xfs -q -f $disk
mkdir -p /mnt/pg
mount $disk /mnt/pg
head -c 1M /dev/urandom >/mnt/pg/a
(cd /mnt/pg && sha256sum a >/tmp/sum)
umount /mnt/pg
mount $disk /mnt/pg
(cd /mnt/pg && sha256sum -c /tmp/sum) || fail "the file changed"
umount /mnt/pg
mkfs.ext4 -q -F $disk
mount $disk /mnt/pg

phase "grow"
# As docs/ISCSI.md says, with what multipathd does for "resize map" done by hand.
sizes() { echo "$(blockdev --getsize64 "$a") $(blockdev --getsize64 "$b")"; }
grown() { [ "$(sizes)" = "$((768 << 20)) $((768 << 20))" ]; }
g volume resize pg --size 768M >/dev/null
[ "$(sizes)" = "$((640 << 20)) $((640 << 20))" ] || fail "$(sizes) bytes without being asked: docs/ISCSI.md says otherwise"
iscsiadm -m session --rescan >/dev/null
until_true 30 "two larger disks" grown
paths | dmsetup reload mp
dmsetup suspend mp
dmsetup resume mp
resize2fs $disk >/dev/null 2>&1 || fail "resize2fs"
[ "$(df --output=size -B1M /mnt/pg | tail -1)" -gt 650 ] || fail "the file system did not grow"

phase "database"
pg_init /mnt/pg
pg_start /mnt/pg
as_postgres "$PGBIN/pgbench" -i -I dtGp -q -s 1 2>/dev/null # G: the server makes the rows, which is twice as fast here
sql -c 'CREATE TABLE ledger (n bigint PRIMARY KEY)'
for n in $(seq 1 100000); do echo "INSERT INTO ledger VALUES ($n) RETURNING n;"; done >/tmp/inserts

# Blocks are written and verified, and small files with a number, each named in /out once fsync said yes.
phase "load"
fio --name=verify --filename=/mnt/pg/fio --rw=randwrite --bs=4k --size=8M --iodepth=8 --ioengine=libaio --direct=1 \
	--verify=crc32c --verify_fatal=1 --do_verify=1 --rate_iops=60 >/tmp/fio.log 2>&1 &
verify=$!
: >/out/answered
(
	n=0
	until [ -e /tmp/enough ]; do
		n=$((n + 1))
		echo "record $n" | dd of=/mnt/pg/r.$n conv=fsync status=none || { echo "record $n failed" >>/out/refused; break; }
		echo $n >>/out/answered
	done
) &
records=$!
answered() { [ "$(wc -l </out/answered)" -gt "$1" ]; }
# Commits too: those that psql was told of, and pgbench's.
: >/out/commits
sql -f /tmp/inserts >>/out/commits &
commits=$!
as_postgres "$PGBIN/pgbench" -n -c 2 -T 20 >/tmp/pgbench.log 2>&1 &
pgbench=$!
committed() { [ "$(wc -l </out/commits)" -gt "$1" ]; }
until_true 60 "records" answered 5
until_true 60 "commits" committed 5
phase "kill the holder"
before=$(wc -l </out/answered) commit=$(wc -l </out/commits)
kill -KILL "${pids[1]}"
killed=$SECONDS
until_true 90 "records after the takeover" answered $((before + 8))
phase "records again $((SECONDS - killed)) s after the kill"
until_true 90 "commits after the takeover" committed $((commit + 8))
wait $pgbench || { cat /tmp/pgbench.log; fail "pgbench met an error"; }
transactions=$(sed -nE 's/.*actually processed: ([0-9]+).*/\1/p' /tmp/pgbench.log)
kill -0 $commits || fail "psql met an error"
touch /tmp/enough
wait $records
[ ! -e /out/refused ] || fail "$(cat /out/refused)"
wait $verify || { cat /tmp/fio.log; fail "fio met an error"; }
dmsetup status mp
phase "what was answered"
kill $commits
last=$(grep -c . /out/commits)
[ "$(sql -c "SELECT count(*) FROM ledger WHERE n <= $last")" = "$last" ] || fail "LOST: not all of $last commits are there"
[ "$(sql -c 'SELECT count(*) FROM pgbench_history')" = "$transactions" ] || fail "LOST: not all of $transactions transactions of pgbench are there"
echo "database verified: $last commits, $transactions transactions of pgbench"
pg_stop /mnt/pg
as_postgres "$PGBIN/pg_checksums" --check -D /mnt/pg/data >/dev/null || fail "pg_checksums"
umount /mnt/pg
e2fsck -f -n $disk >/dev/null || fail "e2fsck"
mount -o ro $disk /mnt/pg
while read -r n; do
	[ "$(cat /mnt/pg/r.$n)" = "record $n" ] || fail "record $n was answered and is lost"
done </out/answered
echo "verified: $(wc -l </out/answered) records"
umount /mnt/pg
dmsetup remove mp
iscsiadm -m node -T $target -p 127.0.0.1:"$(iscsi_port 2)" --logout
if dmesg | grep -E 'Buffer I/O error|EXT4-fs error|XFS.*error|dm-0.*I/O error|hung_task|blocked for more'; then fail "the kernel complains"; fi
echo PASSED
