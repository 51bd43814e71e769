#!/usr/bin/env bash
# Installs the programs that the tests and the demonstration use beside Python: makers and checkers of filesystems, and
# a block device whose reads can be made to fail. Does nothing where all are there; as root on Debian it installs what
# is missing, elsewhere it says what to install.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

missing() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

programs=(mkfs.ext4 debugfs e2fsck mkfs.xfs xfs_repair mkfs.btrfs btrfs mkfs.ntfs ntfs-3g ntfsfix losetup mount nbdkit nbdfuse fusermount3)
lacking=$(missing "${programs[@]}")
[ -n "$lacking" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    packages=(e2fsprogs xfsprogs btrfs-progs ntfs-3g util-linux mount nbdkit libnbd-bin fuse3)
    # Part of libnbd-bin up to Debian 12, a package of its own since.
    if [ -n "$(apt-cache policy nbdfuse | grep -E 'Candidate: [0-9]' || true)" ]; then packages+=(nbdfuse); fi
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    lacking=$(missing "${programs[@]}")
    [ -n "$lacking" ] || exit 0
fi
echo "tools: these programs are missing, tests that need them cannot run: ${lacking//$'\n'/ }" >&2
if [ "${CI:-}" = true ]; then exit 1; fi
