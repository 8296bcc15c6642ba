#!/bin/sh
# First process on the root disk: sets the network up and runs the guest's server, /sbin/serve. Words of the
# kernel's command line that the kernel does not know come as environment variables:
#   ip=ADDRESS/PREFIX gw=ADDRESS   network
#   shell=1                        a shell on the console beside the server
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TERM="${TERM:-vt100}"
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run

# The console that the command line names last may be one whose driver was loaded after the kernel started.
exec </dev/console >/dev/console 2>&1

hostname "${hostname:-lockstep}"
ip link set lo up
if [ -n "$ip" ] && [ -e /sys/class/net/eth0 ]; then
    ip addr add "$ip" dev eth0
    ip link set eth0 up
    [ -n "$gw" ] && ip route add default via "$gw"
fi
echo 1 >/proc/sys/vm/overcommit_memory
echo never >/sys/kernel/mm/transparent_hugepage/enabled

# The power button, which `lockstep stop` presses.
[ -e /dev/input/event0 ] && acpid -l /dev/null -p /run/acpid.pid

/sbin/serve &
server=$!
echo $server >/run/server.pid
if [ -n "$shell" ]; then
    setsid -c sh
else
    wait $server
    exec switch-off "the server ended; switching off"
fi
exec switch-off
