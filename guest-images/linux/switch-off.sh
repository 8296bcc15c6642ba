#!/bin/sh
# Switches the machine off as a shutdown does: processes end, file systems are written and left clean. Called
# by the first process when it has nothing more to do, and by acpid when the power button was pressed; whoever
# comes second waits for the first.
mkdir /run/switching-off 2>/dev/null || exec sleep 3600
exec </dev/console >/dev/console 2>&1
echo "init: ${1:-switching off}"

# The server first, and with time: what it has to write may be much.
server=$(cat /run/server.pid 2>/dev/null)
if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then
    tries=600
    while [ -d "/proc/$server" ] && [ $tries -gt 0 ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
fi
kill -TERM -1 2>/dev/null
sync
# A file that is open for writing would be in the way.
tries=10
until mount -o remount,ro / 2>/dev/null || [ $tries -eq 0 ]; do
    sleep 0.1
    tries=$((tries - 1))
    [ $tries -eq 5 ] && kill -KILL -1 2>/dev/null
done
umount -a -r 2>/dev/null
sync
poweroff -f
