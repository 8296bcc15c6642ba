#!/bin/sh
# Runs programs of the image `programs`, the same in its guest and on a host beneath a tree of its files: by the
# tree's own loader, libraries and busybox.
#   work.sh prepare                  data for the others, in $work
#   work.sh NAME SCALE               runs one; its last line is what it computed, as a checksum
# Environment: root (the tree, empty in the guest), work (a directory for data), java_flags.
here=$root/usr/share/programs
busybox=$root/bin/busybox
libraries=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
loader="$root/lib64/ld-linux-x86-64.so.2 --library-path $libraries"
work=${work:-/tmp/programs}
export OPENSSL_CONF=/dev/null

checksum() { $busybox md5sum "$@" | $busybox md5sum | $busybox cut -d ' ' -f 1; }
openssl() { $loader "$root/usr/bin/openssl" "$@"; }
java() { $loader "$root/usr/lib/jvm/java/bin/java" -Xmx96m -Xss512k -XX:+UseSerialGC -XX:ActiveProcessorCount=1 \
    -XX:-UsePerfData -XX:+IgnoreUnrecognizedVMOptions $java_flags -cp "$here" "$@"; }

# SCALE MiB go through two ciphers and two hashes, 16 at a time: the guest keeps its files in memory. The rest is
# arithmetic with large numbers.
run_openssl() {
    key=000102030405060708090a0b0c0d0e0f
    rounds=$(($1 > 16 ? $1 / 16 : 1))
    $busybox head -c "$(($1 > 16 ? 16 : $1))m" "$work/data" >"$work/part" || return
    : >"$work/out"
    while [ $rounds -gt 0 ]; do
        openssl enc -aes-128-cbc -K $key -iv $key -in "$work/part" -out "$work/aes" || return
        openssl dgst -sha256 -r <"$work/aes" >>"$work/out" || return
        openssl enc -chacha20 -K $key$key -iv $key -in "$work/aes" -out "$work/part" || return
        openssl dgst -sha512 -r <"$work/part" >>"$work/out" || return
        rounds=$((rounds - 1))
    done
    # 2^2203 - 1 or 2^521 - 1.
    number=$(if [ "$1" -gt 20 ]; then $busybox printf '7%0550d' 0; else $busybox printf '1%0130d' 0; fi)
    openssl prime -checks 2 -hex "$($busybox echo "$number" | $busybox tr 0 f)" >>"$work/out" || return
    $busybox rm "$work/part" "$work/aes"
    checksum <"$work/out"
}

run_sqlite() {
    $busybox sed "s/SCALE/$1/" "$here/work.sql" >"$work/work.sql"
    $loader "$root/usr/bin/sqlite3" :memory: <"$work/work.sql" >"$work/out" || return
    checksum <"$work/out"
}

# As the driver does: the compiler proper and the assembler.
run_gcc() {
    optimise=-O$(($1 > 10 ? 1 : 0))
    $loader "$here/cc1" -quiet -fpreprocessed $optimise -o "$work/unit.s" "$here/unit.i" || return
    $loader "$here/as" --64 -o "$work/unit.o" "$work/unit.s" || return
    checksum <"$work/unit.o"
}

run_java() {
    java Work "$1" >"$work/out" || return
    checksum <"$work/out"
}

run_rewrite() {
    for way in mappings crossing mprotect; do
        "$here/rewrite" $way "$1" || return
    done
}

case $1 in
    prepare)
        $busybox mkdir -p "$work"
        openssl enc -aes-128-ctr -K 00 -iv 00 </dev/zero 2>/dev/null | $busybox head -c 16m >"$work/data"
        ;;
    openssl | sqlite | gcc | java | rewrite) "run_$1" "$2" ;;
    *) exit 2 ;;
esac
