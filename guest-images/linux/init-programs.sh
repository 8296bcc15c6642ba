#!/bin/sh
# First process on the root disk of `programs`. Words of the kernel's command line that the kernel does not know come
# as environment variables:
#   run="COMMANDS"                 runs them instead of a shell on the console, then switches the machine off
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TERM="${TERM:-vt100}"
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run

# The console that the command line names last may be one whose driver was loaded after the kernel started.
exec </dev/console >/dev/console 2>&1

hostname "${hostname:-lockstep}"
ip link set lo up
echo 1 >/proc/sys/vm/overcommit_memory
echo never >/sys/kernel/mm/transparent_hugepage/enabled

# The power button, which `lockstep stop` presses.
[ -e /dev/input/event0 ] && acpid -l /dev/null -p /run/acpid.pid

if [ -n "$run" ]; then
    sh -c "$run"
else
    setsid -c sh
fi
exec switch-off
