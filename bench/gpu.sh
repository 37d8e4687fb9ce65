#!/usr/bin/env bash
# All measurements that need a GPU, in at most nine minutes: bench/gpu.sh TEXT [UPSTREAM]
#
#   TEXT      a directory of parquet shards with a column `text`
#   UPSTREAM  a checkout of karpathy/nanochat for comparisons; PEER_PACKAGES=FOLDER names its unpacked packages, if they cannot be
#             downloaded
#
# Measures speed, memory and mfu by depth at 2,048 tokens of context, also of upstream on its fastest path, then the parity of losses on
# CPU and GPU, the memory of the profiles' [full] runs, and serving. Measurements that do not fit into the time are listed, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
text=$(realpath "${1:?a folder of parquet shards}")
upstream=(${2:+--upstream="$(realpath "$2")"} ${PEER_PACKAGES:+--peer-packages="$PEER_PACKAGES"})
python=${PYTHON:-.venv/bin/python}
end=$((SECONDS + ${BENCH_SECONDS:-530}))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NANOCHAT_BASE_DIR=$work/base

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU that torch can use"'
"$python" -c 'import torch; print(torch.cuda.get_device_name(), "| torch", torch.__version__)'
nvidia-smi --query-gpu=driver_version,memory.total,power.limit --format=csv,noheader

# within LEAST COMMAND...: runs it where so many seconds are left, and no longer than there are
within() {
    local least=$1 left=$((end - SECONDS))
    shift
    if ((left < least)); then
        echo "not measured (no time left): $*"
    else
        timeout "$left" "$@" || echo "failed or out of time (exit $?): $*"
    fi
}
# losses DEVICE: of twenty deterministic steps
losses() {
    "$python" entrypoint.py train --stage=base --device="$1" --run="parity-$1" --dataset=embedded --depth=4 --head_dim=32 --aspect_ratio=32 --max_seq_len=256 \
        --vocab_size=512 --device_batch_size=4 --total_batch_size=1024 --num_iterations=20 --eval_every=-1 --eval_tokens=512 --deterministic
}
# card PROFILE: the most memory that twelve steps of its real run take
card() {
    "$python" entrypoint.py train --stage=base --profile="$1" --run="card-$1" --data="$text" --num_iterations=12 --eval_every=-1 --eval_tokens=65536 --compile=on
    "$python" - "$1" <<'P'
import json, sys
from nanochat.paths import run_dir
lines = [json.loads(line) for line in (run_dir(f"card-{sys.argv[1]}") / "metrics.jsonl").read_text().splitlines()]
print(f"{sys.argv[1]} [full]: peak {max(line['peak_memory_bytes'] for line in lines) / 1e9:.2f} GB, {lines[-1]['tokens_per_second']:,.0f} tokens/s")
P
}
export -f losses card
export python text

echo "== speed and memory by depth, T = 2048"
for shape in "12 16 131072" "20 8 131072"; do
    read -r depth rows batch <<<"$shape"
    echo "-- d$depth, $rows rows at once, $batch tokens a step"
    within 60 "$python" bench/train.py --text="$text" "${upstream[@]}" --work="$work/train" --depth="$depth" --head-dim=128 --max-seq-len=2048 \
        --vocab-size=32768 --device-batch-size="$rows" --total-batch-size="$batch" --steps=15 --repeats=1
done

echo "== parity: losses of a CPU and of the GPU, float32"
within 60 bash -c 'losses cpu && losses cuda' 2>"$work/log" || tail -n 3 "$work/log"
"$python" - <<'P' || true
import json
from nanochat.paths import run_dir
both = [[json.loads(line)["loss"] for line in (run_dir(f"parity-{device}") / "metrics.jsonl").read_text().splitlines()] for device in ("cpu", "cuda")]
print(f"largest relative difference in {len(both[0])} steps: {max(abs(a - b) / a for a, b in zip(*both, strict=True)):.1e}")
P

echo "== the cards' own runs"
for profile in rtx4050 rtx4090; do
    within 40 bash -c "card $profile" 2>>"$work/log"
done

echo "== serving"
within 40 "$python" bench/serve.py --models d8 --repeats 1 --device cuda --alone
