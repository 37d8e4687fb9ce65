#!/usr/bin/env bash
# Implementation of `make lock`: writes the newest versions that pyproject.toml allows to requirements.lock (third-party packages only,
# with hashes, for all platforms), and as constraints to the end of pyproject.toml, so that `uv sync` installs the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=$(command -v uv || echo .venv/bin/uv)
mark='# Below: made by `make lock`'
cp pyproject.toml .venv/pyproject.before-lock
trap 'cp .venv/pyproject.before-lock pyproject.toml' ERR
sed -i "/^$mark/,\$d" pyproject.toml # otherwise the old versions would be kept
compile() {
    "$uv" pip compile pyproject.toml --quiet --group run --group dev "$@" --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
        --no-emit-package nanochat-rustbpe --custom-compile-command "make lock" --output-file requirements.lock
}
compile --all-extras --upgrade # first with all extras, so that each of them is compatible with the locked versions
compile --extra gpu            # then without them, which keeps the versions found before
{
    echo "$mark, the versions of requirements.lock, which \`uv sync\` and \`uv run\` install too."
    echo "[tool.uv]"
    echo "constraint-dependencies = ["
    sed -nE 's/^([a-z0-9-]+==[^ ]+)( ; [^\\]*[^ \\])? *\\?$/    "\1\2",/p' requirements.lock
    echo "]"
} >>pyproject.toml
