#!/bin/sh
# The first and only process tree of the emulated machine: mounts what Python needs, runs one command, ends.
# The root is the host's, read only; /mnt is the writable share, in which the host left `command-PART` and reads `status-PART`.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
# Only a kernel that was built with its tracers has this.
[ -d /sys/kernel/tracing ] && mount -t tracefs tracefs /sys/kernel/tracing
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 results /mnt || echo "emulation: no share for results"
# The kernel makes its parameter `part` a variable of ours.
sh "/mnt/command-$part" </dev/null
echo $? >"/mnt/status-$part"
sync
# -no-reboot turns a reboot into the end of the emulator.
reboot -f 2>/dev/null
echo b >/proc/sysrq-trigger
