#!/usr/bin/env bash
# Implementation of `make install`: .venv at the root with everything in requirements.lock, rustbpe and the project.
# Reads TORCH_BACKEND, a name of uv's --torch-backend such as cpu or cu130 (empty: the torch of the lock).
# Index addresses, proxies and certificates come from the machine's configuration.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { # message, hint
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 3
}

# One requirement of the lock with its hashes.
locked() { awk -v name="$1==" 'index($0, name) == 1 {on = 1} on {print} on && !/\\$/ {exit}' requirements.lock; }

# --- A Rust compiler and a linker -----------------------------------------------------------------------------------
cargo_home=${CARGO_HOME:-$HOME/.cargo}
command -v cargo >/dev/null || PATH=$cargo_home/bin:$PATH
cargo=$(cargo --version 2>/dev/null) || fail "no working Rust compiler (cargo)" \
    "install Rust 1.85 or newer (on Debian 13: apt install cargo; elsewhere: rustup), or load it: . ~/.cargo/env"
cargo=${cargo#cargo }
cargo=${cargo%% *}
[ "$(printf '%s\n' 1.85 "$cargo" | sort -V | head -n 1)" = 1.85 ] || fail "cargo $cargo is older than 1.85" "run: rustup update stable"
command -v cc >/dev/null || fail "no C compiler (cc), which Rust needs for linking" "install it (on Debian and Ubuntu: apt install gcc)"

# --- uv: the machine's, else one under .bootstrap with the lock's hash -------------------------------
uv=$(command -v uv || echo .bootstrap/bin/uv)
"$uv" --version >/dev/null 2>&1 || uv=.bootstrap/bin/uv
if ! "$uv" --version >/dev/null 2>&1; then
    command -v python3 >/dev/null || fail "no python3" "install it (on Debian and Ubuntu: apt install python3 python3-venv)"
    echo "downloading uv" >&2
    rm -rf .bootstrap
    python3 -m venv .bootstrap >/dev/null 2>&1 \
        || fail "python3 cannot make a virtual environment" "install uv, or python3-venv (on Debian and Ubuntu: apt install python3-venv)"
    locked uv >.bootstrap/uv.txt
    .bootstrap/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .bootstrap/uv.txt
fi
# pip's mirror setting is passed to uv, which does not read it.
index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=$index; fi

# --- .venv -------------------------------------------------------------------------------------------------------------
# uv uses the machine's python3 if it is new enough, else downloads one.
.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || "$uv" venv --quiet --clear --python '>=3.11,<3.15' .venv
rm -f .venv/.installed*
install() { "$uv" pip install --python .venv/bin/python "$@"; }

if [ -n "${TORCH_BACKEND:-}" ]; then
    # All but torch and its own dependencies first, then torch in the same version from the backend's index.
    awk '/^[a-z]/ {on = !/^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/} on' requirements.lock >.venv/locked.txt
    install --require-hashes -r .venv/locked.txt
    install --torch-backend "$TORCH_BACKEND" "$(locked torch | sed -n '1s/ .*//p')"
else
    install --require-hashes -r requirements.lock
fi

# --- rustbpe (by maturin) and the project -----------------------------------------------------------------------------
install --no-deps --no-build-isolation --reinstall-package nanochat-rustbpe ./rustbpe
install --no-deps --no-build-isolation --editable .
echo "${TORCH_BACKEND:-}" >.venv/.torch-backend
