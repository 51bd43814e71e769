#!/usr/bin/env bash
# Writes the lock files: every package the program (requirements.lock), and the work on it (requirements-dev.lock), needs,
# at one version with its hashes, for Python 3.11 and later on every system. No address of a registry gets into them.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
[ -x build/lock/bin/uv ] || { .venv/bin/python -m venv build/lock && build/lock/bin/python -m pip install --quiet uv; }
lock() {
    build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --no-config \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file "$1" "${@:2}"
}
lock requirements.lock pyproject.toml
lock requirements-dev.lock pyproject.toml --group dev
