#!/usr/bin/env bash
# Boots the test machine over this host's own files (read-only, under a throw-away overlay) and runs
# SCRIPT in it as root, with /out in the guest being OUT here. OUT/log has what it printed, OUT/console
# the kernel's words, OUT/rc its exit code, which is also that of run.sh (99: the machine died first).
# With VM_EXEC=1 run.sh becomes the QEMU process: whoever started it may kill it to cut the power.
# usage: run.sh OUT SCRIPT [ARG...]
# env: VM_IMAGE (.cache/vm) VM_CPU (max) VM_MEM (MiB, 2048) VM_CPUS (2) VM_TIMEOUT (seconds, 600)
#      VM_INIT (none; systemd: that is the first process, and SCRIPT one of its services)
#      VM_DISKS ("a.img b.img": raw, no host cache: /dev/vda, /dev/vdb)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out=$1 script=$2
shift 2
image=${VM_IMAGE:-$top/.cache/vm}
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out/rc" "$out/console"
cp "$script" "$out/script.sh"
{
	echo '#!/bin/bash'
	echo 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root'
	echo 'ip link set lo up; hostname vm; cd /root'
	printf 'export TOP=%q\n' "$top"
	printf 'rig() { bash /out/script.sh'
	[ $# -eq 0 ] || printf ' %q' "$@"
	echo ' >>/out/log 2>&1 </dev/null; echo $? >/out/rc; sync'
	echo 'echo o >/proc/sysrq-trigger; read -r -t 9 <>/dev/null; sleep 9; }'
	if [ "${VM_INIT:-}" = systemd ]; then
		echo '[ $$ = 1 ] || rig'
		cat "$here/guest/systemd-init.sh"
	else
		echo rig
	fi
} >"$out/guest-init"
chmod +x "$out/guest-init"

disks=()
i=0
for d in ${VM_DISKS:-}; do
	disks+=(-drive "file=$d,format=raw,if=none,id=d$i,cache=none,aio=threads" -device "virtio-blk-pci,drive=d$i")
	i=$((i + 1))
done
# no_timer_check: a busy host delivers the emulated timer's first ticks so late that the kernel takes
# it for broken, and panics.
qemu=(qemu-system-x86_64 -accel "tcg,thread=multi" -cpu "${VM_CPU:-max}" -m "${VM_MEM:-2048}" -smp "${VM_CPUS:-2}"
	-display none -monitor none -serial "file:$out/console" -no-reboot -nic none
	-kernel "$image/vmlinuz" -initrd "$image/initrd.img"
	-append "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off no_timer_check"
	-virtfs "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap"
	-virtfs "local,path=$out,mount_tag=hostout,security_model=none"
	-device virtio-rng-pci "${disks[@]}")
if [ "${VM_EXEC:-}" = 1 ]; then exec "${qemu[@]}"; fi
timeout -k 5 "${VM_TIMEOUT:-600}" "${qemu[@]}" >/dev/null || true
exit "$(cat "$out/rc" 2>/dev/null || echo 99)"
