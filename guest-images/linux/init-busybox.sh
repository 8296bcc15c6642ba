#!/bin/sh
# First process of the guest `busybox`: makes the usual file systems and devices, then gives a shell on the
# console. Words of the kernel's command line that the kernel does not know come as environment variables:
#   ip=ADDRESS/PREFIX gw=ADDRESS   network
#   session=PORT                   a shell for whoever connects to this TCP port by telnet, without a password
#   run="COMMANDS"                 runs them instead of a shell, then switches the machine off
export PATH=/bin:/sbin HOME=/ TERM="${TERM:-vt100}"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /tmp /run
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp

while read -r module; do
    insmod "/lib/modules/$module" || echo "init: cannot load $module"
done </lib/modules/order
# The console that the command line names last may be one whose driver was loaded just now.
exec </dev/console >/dev/console 2>&1

hostname "${hostname:-lockstep}"
ip link set lo up
if [ -n "$ip" ] && [ -e /sys/class/net/eth0 ]; then
    ip addr add "$ip" dev eth0
    ip link set eth0 up
    [ -n "$gw" ] && ip route add default via "$gw"
fi

# The power button, which `lockstep stop` presses.
[ -e /dev/input/event0 ] && acpid -l /dev/null -p /run/acpid.pid

[ -n "$session" ] && telnetd -p "$session" -l /bin/sh

if [ -n "$run" ]; then
    sh -c "$run"
else
    echo "busybox on $(uname -sr)"
    setsid -c sh
fi
exec switch-off
