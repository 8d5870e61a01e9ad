# Inside the test machine, as its first process: hands over to systemd, which starts what it needs for
# devices, and this very file once more as a service.
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
: >/etc/fstab
mkdir -p /run/systemd/system
# What goes through the host's directories, or waits for what this machine lacks, has nothing to do with it.
for u in systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-journal-flush systemd-update-utmp systemd-random-seed \
	systemd-sysusers systemd-hwdb-update systemd-journal-catalog-update systemd-machine-id-commit ldconfig apparmor kmod-static-nodes; do
	ln -sf /dev/null /run/systemd/system/$u.service
done
cat >/run/systemd/system/rig.service <<'END'
[Unit]
DefaultDependencies=no
Wants=systemd-udevd.service systemd-journald.socket
After=systemd-udevd.service systemd-journald.socket
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/out/guest-init
END
exec /lib/systemd/systemd --unit=rig.service
