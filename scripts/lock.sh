#!/usr/bin/env bash
# What `make lock` does: the newest versions that pyproject.toml allows -> requirements.lock (third-party packages only, with
# hashes, for every platform), and the same versions as constraints at the end of pyproject.toml, so that `uv sync` keeps to them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=$(command -v uv || echo .venv/bin/uv)
mark='# Below: made by `make lock`'
cp pyproject.toml .venv/pyproject.before-lock
trap 'cp .venv/pyproject.before-lock pyproject.toml' ERR
sed -i "/^$mark/,\$d" pyproject.toml # else the old versions would hold the new ones back
compile() {
    "$uv" pip compile pyproject.toml --quiet --group dev "$@" --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
        --no-emit-package nanochat-rustbpe --custom-compile-command "make lock" --output-file requirements.lock
}
compile --all-extras --upgrade # with every extra first, so that each of them can stand beside what is locked
compile --extra gpu            # then without them: it keeps the versions that it finds there
{
    echo "$mark, the versions of requirements.lock: \`uv sync\` and \`uv run\` install these too."
    echo "[tool.uv]"
    echo "constraint-dependencies = ["
    sed -nE 's/^([a-z0-9-]+==[^ ]+)( ; [^\\]*[^ \\])? *\\?$/    "\1\2",/p' requirements.lock
    echo "]"
} >>pyproject.toml
