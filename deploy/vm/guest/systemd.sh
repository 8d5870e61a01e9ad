# Inside the test machine, under a real systemd as first process and a real udev: the unit and the rule
# of deploy/ attach a volume, name its device, mount it from /etc/fstab, take the device up again when
# the attaching process dies, and take everything away in order.
# run.sh is to be told VM_INIT=systemd.
set -euo pipefail
. "$TOP/deploy/vm/guest/pool.sh"
eval "pool_$(declare -f fail)"
fail() {
	systemctl status --no-pager -l gabion-attach@v.service srv-v.mount dev-gabion-v.device || true
	journalctl --no-pager -b -n 60 || true
	pool_fail "$@"
}
unit=gabion-attach@v.service

phase "node"
mount_pool /dev/vda
start_node 1
until_true 60 "the node" ready 1
g volume create v --size 96M --replicas 1 >/dev/null

phase "install"
ln -s "$GABION" /usr/local/bin/gabion
cp "$TOP/deploy/systemd/gabion-attach@.service" /etc/systemd/system/
cp "$TOP/deploy/udev/60-gabion.rules" /etc/udev/rules.d/
mkdir -p /etc/gabion /srv/v
echo "ARGS=--node=127.0.0.1:$(nbd_port 1)" >/etc/gabion/attach-v.env
echo "/dev/gabion/v /srv/v ext4 _netdev 0 0" >>/etc/fstab
mkdir -p /etc/systemd/system/srv-v.mount.d
printf '[Unit]\nWants=%s\nAfter=%s\n' $unit $unit >/etc/systemd/system/srv-v.mount.d/gabion.conf
systemd-analyze verify /etc/systemd/system/$unit >/tmp/verify 2>&1 || { cat /tmp/verify; fail "systemd-analyze verify"; }
if grep gabion-attach /tmp/verify; then fail "systemd-analyze has something to say"; fi
systemctl daemon-reload
udevadm control --reload
systemctl enable $unit
[ -L /etc/systemd/system/remote-fs.target.wants/$unit ] || fail "it is not wanted at boot"

phase "start"
systemctl start $unit # returns when the process has said that it is ready
[ -b /dev/gabion/v ] || fail "no device when the unit was up"
device=$(readlink -f /dev/gabion/v)
# dev-gabion-v.device is there only if the rule named the device and tagged it.
until_true 30 "the device unit" systemctl -q is-active dev-gabion-v.device
udevadm info -q symlink "$device" | tr ' ' '\n' | grep -qx gabion/v || fail "udev does not know the name: $(udevadm info -q symlink "$device")"
mkfs.ext4 -q /dev/gabion/v

phase "mount"
systemctl stop $unit
gone() { [ ! -L /dev/gabion/v ] && ! systemctl -q is-active dev-gabion-v.device; }
until_true 30 "the end of the name and of the device unit" gone
udevadm settle
[ ! -L /dev/gabion/v ] || fail "udev made the name again"
systemctl start srv-v.mount # by itself starts the unit and waits for the device
systemctl -q is-active $unit || fail "mounted without the unit"
findmnt -n /srv/v
echo "before" | dd of=/srv/v/file conv=fsync status=none

phase "death of the process"
was=$(systemctl show -p MainPID --value $unit)
kill -KILL "$was"
again() { [ "$(systemctl show -p NRestarts --value $unit)" = 1 ] && systemctl -q is-active $unit; }
until_true 60 "the unit is started again" again
findmnt -n /srv/v >/dev/null || fail "the restart has unmounted"
echo "after" | dd of=/srv/v/file oflag=append conv=notrunc,fsync status=none || fail "the device did not outlive its process"
[ "$(cat /srv/v/file)" = "$(printf 'before\nafter')" ] || fail "the file changed"
[ "$(readlink -f /dev/gabion/v)" = "$device" ] || fail "another device"

phase "stop"
systemctl stop srv-v.mount
if findmnt -n /srv/v; then fail "it is still mounted"; fi
systemctl stop $unit
until_true 30 "the end of the name and of the device unit" gone
[ "$(systemctl show -p Result --value $unit)" = success ] || fail "the unit failed: $(systemctl show -p Result --value $unit)"
systemctl start srv-v.mount
[ "$(cat /srv/v/file)" = "$(printf 'before\nafter')" ] || fail "the file changed"
systemctl show -p After --value srv-v.mount | grep -q $unit || fail "at shutdown the device may go before the file system"
systemctl stop srv-v.mount
systemctl stop $unit
kill -TERM "${pids[1]}"
wait "${pids[1]}" || fail "the node ended with $?"
if dmesg | grep -E 'I/O error|hung_task|blocked for more|EXT4-fs error'; then fail "the kernel complains"; fi
echo PASSED
