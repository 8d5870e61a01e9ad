#!/bin/busybox sh
# The first process of the test machine: lays a throw-away overlay over the host's own files, which
# come in read-only over 9p, and hands over to the script in the shared folder /out.
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# What else there is (xfs takes longest) is loaded when it is asked for.
for m in virtio_pci virtio_rng virtio_blk 9pnet_virtio 9p overlay ext4 nbd; do
	modprobe "$m" || echo "no module $m"
done
share="trans=virtio,version=9p2000.L,msize=512000"
mkdir -p /mnt/host /mnt/over /mnt/root
mount -t 9p -o "$share,cache=loose,ro" hostroot /mnt/host || poweroff -f
mount -t tmpfs -o size=60% over /mnt/over
mkdir -p /mnt/over/upper /mnt/over/work
mount -t overlay -o lowerdir=/mnt/host,upperdir=/mnt/over/upper,workdir=/mnt/over/work root /mnt/root
r=/mnt/root
mount -t proc proc $r/proc
mount -t sysfs sysfs $r/sys
mount --move /dev $r/dev
mkdir -p $r/dev/pts $r/dev/shm $r/lib/modules $r/out
mount -t devpts pts $r/dev/pts
# /tmp stays the host's, under the overlay: the tree may have been cloned there
for d in dev/shm run; do mount -t tmpfs tmp $r/$d; done
chmod 1777 $r/tmp $r/dev/shm
cp -a /lib/modules/* $r/lib/modules/
# What is written to /out has reached the host's memory when write(2) returns: it outlives the death
# of this machine. That is what makes it fit for a record of acknowledgements.
mount -t 9p -o "$share,cache=none" hostout $r/out || poweroff -f
exec switch_root $r /out/guest-init
