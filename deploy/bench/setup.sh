#!/usr/bin/env bash
# Sets up what `make bench` compares Forebay with: restic as the distribution has it, and borg at a fixed version, built
# into build/bench. As root on Debian what is missing is installed; elsewhere, or if that fails, it says which peer is
# left out and goes on: the bench runs with the peers that are there. Safe to run again.
# With rows (s3,smb,line) that take none of this, nothing is done.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ -z "${1:-}" ] || tr , '\n' <<<"$1" | grep -qvxE 's3|smb|line' || exit 0
borg_needs="gcc python3-dev pkg-config libssl-dev liblz4-dev libzstd-dev libxxhash-dev libacl1-dev"

apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of packages
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $* >/dev/null
}

build_borg() {
    rm -rf build/bench
    .venv/bin/python -m venv build/bench &&
        build/bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
            -r deploy/bench/peers.lock
}

# The volumes are filled through a loop mount.
CI='' bash deploy/tools.sh mkfs.ext4 losetup mount

command -v restic >/dev/null || apt_install restic || echo "bench: restic is left out: install the package restic" >&2

if ! build/bench/bin/borg --version >/dev/null 2>&1; then
    apt_install "$borg_needs" || true
    if ! build_borg; then
        rm -rf build/bench
        command -v borg >/dev/null || echo "bench: borg is left out: building it takes the packages $borg_needs" >&2
    fi
fi
exit 0
