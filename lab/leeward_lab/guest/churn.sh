#!/bin/busybox sh
# `churn MIB`: write so much memory over and over, as fast as the guest can, until killed. For migrations that cannot keep
# up. The data is not zeros, which a migration would only mention.
export PATH=/bin
mkdir -p /churn
mountpoint -q /churn || mount -t tmpfs -o size=100% churn /churn
head -c 1048576 /dev/urandom >/churn/one
mib=0
while [ $mib -lt "$1" ]; do
    cat /churn/one
    mib=$((mib + 1))
done >/churn/from
echo "leeward-guest: churn mib=$mib"
while :; do dd if=/churn/from of=/churn/to bs=1M conv=notrunc 2>/dev/null; done
