#!/usr/bin/env bash
# Implementation of `make install`: .venv at the root with all that runs, rustbpe and the project. `scripts/install.sh dev` adds the tools
# of `make test`, `make lint` and the other targets for developers.
# Reads TORCH_BACKEND, a name of uv's --torch-backend such as cpu or cu130 (empty: the torch of the lock).
# Index addresses, proxies and certificates come from the machine's configuration. The details of each step are in .install.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log=.install.log

fail() { # message, hint
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 3
}

# Run a command with one status line; its output goes to the log.
phase() { # title, command...
    local title=$1 began=$SECONDS code=0
    shift
    printf '%s ... ' "$title" >&2
    printf '\n=== %s: %s\n' "$title" "$*" >>"$log"
    "$@" >>"$log" 2>&1 || code=$?
    if [ "$code" != 0 ]; then
        printf 'failed\n' >&2
        # The tools' last error, and the line below it, which often has the reason.
        reason=$(grep -v '^=== ' "$log" | grep -iE -A 1 'error|failed|cannot|denied|no space' | grep -v '^--$' | tail -n 2 \
            | sed 's#//[^/@ ]*@#//***@#g; s/^[^[:alnum:]]*//' | tr '\n' ' ' | cut -c 1-300)
        fail "$title failed (exit code $code): ${reason:-no message}" "read $PWD/$log, then run the same command again, which continues"
    fi
    printf 'done (%s s)\n' "$((SECONDS - began))" >&2
}

# One requirement of the lock with its hashes.
locked() { awk -v name="$1==" 'index($0, name) == 1 {on = 1} on {print} on && !/\\$/ {exit}' requirements.lock; }

bootstrap_uv() {
    rm -rf .bootstrap
    python3 -m venv .bootstrap || return 1
    locked uv >.bootstrap/uv.txt
    .bootstrap/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .bootstrap/uv.txt
}

case ${TORCH_BACKEND:-} in
    rocm* | xpu) fail "TORCH_BACKEND=$TORCH_BACKEND is not supported: AMD's and Intel's GPUs are not used" "choose cpu, or leave it out" ;;
esac

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
: >"$log" 2>/dev/null || fail "cannot write in $PWD" "make the directory writable for this user"
uv=$(command -v uv || echo .bootstrap/bin/uv)
"$uv" --version >/dev/null 2>&1 || uv=.bootstrap/bin/uv
if ! "$uv" --version >/dev/null 2>&1; then
    command -v python3 >/dev/null || fail "no python3" "install it (on Debian and Ubuntu: apt install python3 python3-venv)"
    python3 -c 'import ensurepip, venv' 2>/dev/null \
        || fail "python3 cannot make a virtual environment" "install uv, or python3-venv (on Debian and Ubuntu: apt install python3-venv)"
    phase "downloading uv, the installer" bootstrap_uv
fi
# pip's mirror setting is passed to uv, which does not read it.
index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=$index; fi
install() { "$uv" pip install --python .venv/bin/python "$@"; }

if [ "${1:-}" = dev ]; then
    # The lock is complete; without --no-deps uv would ask for hashes of what .venv already has.
    phase "installing the tools for tests and checks" install --no-deps --require-hashes -r .venv/lock/dev.txt
    exit
fi

# --- .venv -------------------------------------------------------------------------------------------------------------
# uv uses the machine's python3 if it is new enough, else downloads one.
.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || phase "making .venv" "$uv" venv --clear --python '>=3.11,<3.15' .venv
rm -f .venv/.installed*
mkdir -p .venv/lock
.venv/bin/python scripts/lock_parts.py .venv/lock

# --- Which torch -------------------------------------------------------------------------------------------------------
if [ -z "${TORCH_BACKEND:-}" ] && ! [ -d .venv/lib/python3*/site-packages/torch ]; then
    driver=$(PATH=$PATH:/usr/lib/wsl/lib nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
    if [[ $driver =~ ^([0-9]+)\. ]]; then
        [ "${BASH_REMATCH[1]}" -ge 580 ] \
            || echo "warning: the NVIDIA driver $driver is older than R580, which torch's CUDA 13 needs: update the driver to use the GPU" >&2
    else
        echo "no NVIDIA GPU found: \`make install TORCH_BACKEND=cpu\` downloads about 0.4 GB instead of 3 GB, and trains on the CPU just the same" >&2
    fi
fi
if [ -n "${TORCH_BACKEND:-}" ]; then
    # All but torch and its own dependencies first, then torch in the same version from the backend's index.
    awk '/^[a-z]/ {on = !/^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/} on' .venv/lock/run.txt >.venv/lock/without-torch.txt
    phase "installing packages" install --require-hashes -r .venv/lock/without-torch.txt
    phase "installing torch ($TORCH_BACKEND)" install --torch-backend "$TORCH_BACKEND" "$(locked torch | sed -n '1s/ .*//p')"
else
    phase "installing packages (the first time some 3 GB are downloaded)" install --require-hashes -r .venv/lock/run.txt
fi

# --- rustbpe (by maturin) and the project -----------------------------------------------------------------------------
phase "compiling rustbpe" install --no-deps --no-build-isolation --reinstall-package nanochat-rustbpe ./rustbpe
phase "installing nanochat" install --no-deps --no-build-isolation --editable .
echo "${TORCH_BACKEND:-}" >.venv/.torch-backend
