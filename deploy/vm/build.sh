#!/usr/bin/env bash
# Makes what the test machine boots: Debian's stock kernel and a small initramfs with the modules
# that the rigs use. Nothing is installed into the host but the tools to do it.
# usage: build.sh [DIR]    leaves DIR/vmlinuz and DIR/initrd.img; default .cache/vm of the tree
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=${1:-$top/.cache/vm}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

exec 9>"$dir/lock"
flock 9
stamp=$(sha256sum "$here/build.sh" "$here/init.sh" | sha256sum | cut -c1-16)
if [ "$(cat "$dir/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

"$top/test/needs.sh" busybox cpio depmod
modules="virtio_pci virtio_blk virtio_rng 9p 9pnet_virtio overlay nbd ext4 xfs loop
	iscsi_tcp sd_mod sg scsi_dh_alua dm_multipath dm_round_robin crc32c_generic"

work=$(mktemp -d "$dir/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
linux() { apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends:/ {print $2; exit}'; }
package=$(linux)
if [ -z "$package" ]; then
	apt-get update -q >/dev/null
	package=$(linux)
fi
cd "$work"
# The package file is kept: a change of the initramfs does not fetch the kernel again.
if ! ls "$dir/$package"_*.deb >/dev/null 2>&1; then
	apt-get -o APT::Sandbox::User=root download "$package" >/dev/null 2>&1 || {
		apt-get update -q >/dev/null
		apt-get -o APT::Sandbox::User=root download "$package" >/dev/null
	}
	mv ./*.deb "$dir/"
fi
dpkg-deb -x "$dir/$package"_*.deb tree
version=$(basename tree/lib/modules/*)
depmod -b tree "$version"

root=$work/root
mkdir -p "$root"/{bin,proc,sys,dev,mnt} "$root/lib/modules/$version"
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$here/init.sh" "$root/init"
chmod +x "$root/init"
for m in $modules; do
	modprobe -d "$work/tree" -S "$version" --show-depends "$m" | awk '$1 == "insmod" {print $2}'
done | sort -u | while read -r ko; do
	to=$root/${ko#"$work"/tree/}
	mkdir -p "$(dirname "$to")"
	cp "$ko" "$to"
done
cp tree/lib/modules/"$version"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$version/"
depmod -b "$root" "$version"
[ -n "$(find "$root/lib/modules" -name "nbd.ko*")" ] || { echo "build.sh: no modules packed" >&2; exit 1; }
cp "tree/boot/vmlinuz-$version" "$dir/vmlinuz"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$dir/initrd.new"
mv "$dir/initrd.new" "$dir/initrd.img"
echo "$stamp" >"$dir/stamp"
