#!/usr/bin/env bash
# Installs the Debian packages that the rigs, the virtual machine and the benchmark use.
# Needs root and apt-get. Without them it says what is missing and leaves: what needs it is then
# skipped with that reason, and a skip fails the run when CI=true.
# usage: test/needs.sh [COMMAND...]   only what these commands need; default: everything
set -euo pipefail

# command:package, one for each tool that a rig starts
table="
qemu-system-x86_64:qemu-system-x86
qemu-img:qemu-utils
qemu-io:qemu-utils
qemu-nbd:qemu-utils
busybox:busybox-static
cpio:cpio
depmod:kmod
ip:iproute2
iptables:iptables
nbd-client:nbd-client
iscsi-test-cu:libiscsi-bin
iscsi-ls:libiscsi-bin
iscsid:open-iscsi
dmsetup:dmsetup
sg_persist:sg3-utils
tgtd:tgt
tgtadm:tgt
/usr/lib/*/qemu/block-iscsi.so:qemu-block-extra
nbdkit:nbdkit
nbdinfo:libnbd-bin
nbdcopy:libnbd-bin
nbdfuse:libnbd-bin
fusermount3:fuse3
mkfs.ext4:e2fsprogs
mkfs.xfs:xfsprogs
fio:fio
jq:jq
losetup:mount
udevadm:udev
make:make
gcc:gcc
/usr/lib/postgresql/*/bin/pgbench:postgresql
/usr/lib/postgresql/*/bin/pg_amcheck:postgresql
/usr/include/stdlib.h:libc6-dev
"

export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
want=("$@")
missing=()
set -f
for row in $table; do
	cmd=${row%%:*} pkg=${row#*:}
	if [ ${#want[@]} -gt 0 ]; then
		case " ${want[*]} " in *" ${cmd##*/} "*) ;; *) continue ;; esac
	fi
	case $cmd in
	/*) compgen -G "$cmd" >/dev/null && continue ;;
	*) command -v "$cmd" >/dev/null && continue ;;
	esac
	missing+=("$pkg")
done
set +f
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "needs: missing ${missing[*]}; only root on Debian can install them here" >&2
	[ "${CI:-}" = true ] && exit 1
	exit 0
fi
exec 9>/var/tmp/gabion-needs.lock
flock 9
echo "needs: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# The cluster that Debian starts after an installation of PostgreSQL is not wanted.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] ||
	echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
apt-get update -q >/dev/null
apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
