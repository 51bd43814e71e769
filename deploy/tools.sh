#!/usr/bin/env bash
# Installs programs beside Python: tools.sh [PROGRAM …], without a name all that the tests use: makers and checkers of
# filesystems, a block device whose reads can be made to fail, and Samba. Does nothing where all are there; as root on Debian
# it installs what is missing, elsewhere it says what to install.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

declare -A package_of=(
    [mkfs.ext4]=e2fsprogs [debugfs]=e2fsprogs [e2fsck]=e2fsprogs
    [mkfs.xfs]=xfsprogs [xfs_repair]=xfsprogs
    [mkfs.btrfs]=btrfs-progs [btrfs]=btrfs-progs
    [mkfs.ntfs]=ntfs-3g [ntfs-3g]=ntfs-3g [ntfsfix]=ntfs-3g
    [losetup]=mount [mount]=mount
    [smbd]="samba samba-vfs-modules" [smbpasswd]=samba-common-bin
    [nbdkit]=nbdkit [nbdinfo]=libnbd-bin [nbdfuse]=libnbd-bin [fusermount3]=fuse3
)

lacking() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

[ $# -gt 0 ] || set -- "${!package_of[@]}"
missing=$(lacking "$@")
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    packages=()
    for program in $missing; do read -ra names <<<"${package_of[$program]}" && packages+=("${names[@]}"); done
    # Part of libnbd-bin up to Debian 12, a package of its own since.
    if [[ $missing == *nbdfuse* ]] && apt-cache show nbdfuse >/dev/null 2>&1; then packages+=(nbdfuse); fi
    # No service is started: the tests start servers of their own, on ports of their own.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
        trap 'rm -f $policy' EXIT
    fi
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    missing=$(lacking "$@")
    [ -n "$missing" ] || exit 0
fi
wanted=$(for program in $missing; do echo "${package_of[$program]}"; done | sort -u | tr '\n' ' ')
echo "missing: ${missing//$'\n'/ }; install: $wanted" >&2
# A developer's machine may do without; where nothing may be skipped it is an error.
[ "${CI:-}" != true ]
