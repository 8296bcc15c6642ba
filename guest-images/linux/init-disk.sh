#!/bin/sh
# First process of the guests that have a root disk: loads the drivers, mounts the disk, goes on there.
export PATH=/bin:/sbin HOME=/ TERM="${TERM:-vt100}"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

while read -r module; do
    insmod "/lib/modules/$module" || echo "init: cannot load $module"
done </lib/modules/order

if ! mount -t ext4 -o noatime /dev/vda /mnt; then
    echo "init: the disk has no file system of this guest; use a new one (--disk NAME)"
    poweroff -f
fi
mount --move /proc /mnt/proc
mount --move /sys /mnt/sys
mount --move /dev /mnt/dev
exec switch_root /mnt /sbin/init
