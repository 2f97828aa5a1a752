#!/bin/busybox sh
# The whole user space of the laboratory's guest.
#
# It promises: a line `leeward-guest: tick boot=N line=M uptime=S` is printed on the serial console only after the same
# record is on stable storage, so whatever the console acknowledged must be found on the disk after any power cut.
# Lines go on counting over boots, so a lost record shows as a number seen twice.
# The data partition: sector 0 holds the number of boots; sectors 8.. are a ring in which line M has slot M modulo SLOTS.
export PATH=/bin
SLOTS=248
DATA=/dev/vda2
BALLAST_MIB=@BALLAST_MIB@
CHURN_MIB=@CHURN_MIB@

say() { echo "leeward-guest: $*"; }

load() { for module in $1; do insmod "/lib/modules/$module.ko" 2>/dev/null; done; }

# One sector, durable when this returns. A failure is reported and tried again: an unwritten line is never acknowledged.
write_sector() {
    until printf '%-511s\n' "$2" | dd of=$DATA bs=512 seek="$1" count=1 conv=notrunc,fsync 2>/dev/null; do
        say "write failed sector=$1"
        sleep 1
    done
}

uptime_s() { read -r up _ </proc/uptime; }

# The machine's own clock, in whole seconds, which goes on while the guest stands still: hosts on one machine share it.
clock_s() { read -r clock </sys/class/rtc/rtc0/since_epoch; }

# The last boot and line in the records on stdin: `boots lines`.
last_record() {
    tr -d '\000' | awk '/^leeward-guest v1 / {
        for (i = 3; i <= NF; i++) { split($i, kv, "="); v[kv[1]] = kv[2] + 0 }
        if (v["boot"] > boots) boots = v["boot"]
        if (v["line"] > lines) lines = v["line"]
    } END { print boots + 0, lines + 0 }'
}

# Fill memory with data, so that a migration has something to carry: pages of zeros are only mentioned in it.
ballast() {
    [ "$BALLAST_MIB" -gt 0 ] || return
    mkdir /ballast
    mount -t tmpfs -o size=100% ballast /ballast
    head -c 1048576 /dev/urandom >/ballast/one
    mib=1
    while [ $mib -lt "$BALLAST_MIB" ]; do
        cat /ballast/one
        mib=$((mib + 1))
    done >/ballast/rest
    say "ballast mib=$mib"
}

# A stop is a press of the ACPI power button: one 24-byte input event. The disk is always in order, so nothing is awaited.
power_button() {
    for input in /sys/class/input/event*; do
        read -r name <"$input/device/name"
        [ "$name" = "Power Button" ] || continue
        (head -c 24 "/dev/input/${input##*/}" >/dev/null && say "power button: powering off" && poweroff -f) &
    done
}

# Lines typed on the console are run, so that an attached console answers.
console_shell() { while read -r command; do sh -c "$command" 2>&1; done; }

# The first of the other disks that carries a cloud-init seed (NoCloud) is shown, and so is any other guest's record.
other_disks() {
    for path in /sys/block/vd[b-z] /sys/block/sr*; do
        [ -e "$path" ] || continue
        disk=${path##*/}
        read -r sectors <"$path/size"
        found="disk $disk sectors=$sectors"
        if [ -b "/dev/${disk}2" ]; then
            set -- $(last_record <"/dev/${disk}2")
            found="$found boots=$1 lines=$2"
        fi
        say "$found"
        mount -t iso9660 -o ro "/dev/$disk" /mnt 2>/dev/null || mount -t vfat -o ro "/dev/$disk" /mnt 2>/dev/null || continue
        for file in meta-data user-data; do
            [ -e "/mnt/$file" ] && while read -r line; do say "seed $file: $line"; done <"/mnt/$file"
        done
        umount /mnt
    done
}

# Enough of the QEMU guest agent for libvirt to ping it, freeze and thaw. While frozen, no line is written.
guest_agent() {
    for port in /sys/class/virtio-ports/*; do
        [ -e "$port/name" ] && read -r name <"$port/name" && [ "$name" = org.qemu.guest_agent.0 ] || continue
        device="/dev/${port##*/}"
        # Kept open, since libvirt connects only after it has seen that; until then, reading gives end of file.
        exec 3<>"$device" || return
        while :; do
            while read -r request <&3; do agent_answer "$request" >&3; done
            usleep 200000
        done
    done
}

agent_answer() {
    id=${1#*\"id\":}
    id=${id%%[!0-9 -]*}
    state=thawed
    [ -e /run/frozen ] && state=frozen
    case "$1" in
    *guest-sync-delimited*) printf '\377{"return": %s}\n' "$id" ;;
    *guest-sync*) echo "{\"return\": $id}" ;;
    *guest-ping*) echo '{"return": {}}' ;;
    *guest-info*) agent_info ;;
    *guest-fsfreeze-status*) echo "{\"return\": \"$state\"}" ;;
    *guest-fsfreeze-freeze*) freeze && echo '{"return": 1}' ;;
    *guest-fsfreeze-thaw*) rm -f /run/frozen && say thawed >/dev/console && echo '{"return": 1}' ;;
    *guest-shutdown*) say "agent: shutdown" >/dev/console && case "$1" in *reboot*) reboot -f ;; *) poweroff -f ;; esac ;;
    *) echo '{"error": {"class": "CommandNotFound", "desc": "not known to this guest"}}' ;;
    esac
}

# Returns when the loop that writes has seen it: no write is under way from here to the thaw.
freeze() {
    rm -f /run/quiet
    touch /run/frozen
    until [ -e /run/quiet ]; do usleep 50000; done
    sync
    say frozen >/dev/console
}

agent_info() {
    commands=
    for name in guest-sync guest-sync-delimited guest-ping guest-info guest-shutdown guest-fsfreeze-status \
        guest-fsfreeze-freeze guest-fsfreeze-thaw; do
        commands="$commands${commands:+, }{\"name\": \"$name\", \"enabled\": true, \"success-response\": true}"
    done
    echo "{\"return\": {\"version\": \"0.1\", \"supported_commands\": [$commands]}}"
}

# What the first tick does not need.
later() {
    load "@LATER@"
    for nic in /sys/class/net/eth*; do
        [ -e "$nic" ] || continue
        read -r mac <"$nic/address"
        ip link set "${nic##*/}" up
        say "nic ${nic##*/} mac=$mac"
    done
    other_disks
    guest_agent
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
# Ctrl-Alt-Del reboots at once.
echo 1 >/proc/sys/kernel/ctrl-alt-del
load "@FIRST@"
until [ -b $DATA ]; do usleep 20000; done

set -- $(last_record <$DATA)
boot=$(($1 + 1))
line=$2
write_sector 0 "leeward-guest v1 boot=$boot"
uptime_s
read -r _ memory_kib _ </proc/meminfo
say "boot $boot line=$line uptime=$up memory_kib=$memory_kib cpus=$(nproc)"
power_button
later &
ballast
[ "$CHURN_MIB" -eq 0 ] || churn "$CHURN_MIB" &
console_shell </dev/console &

while :; do
    if [ -e /run/frozen ]; then
        touch /run/quiet
        usleep 50000
        continue
    else
        line=$((line + 1))
        uptime_s
        clock_s
        write_sector $((8 + line % SLOTS)) "leeward-guest v1 boot=$boot line=$line uptime=$up clock=$clock"
        say "tick boot=$boot line=$line uptime=$up"
    fi
    sleep 1
done
