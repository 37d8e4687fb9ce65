"""The image: what is in it, what was left out, and that it works as any user, with every right taken away."""

import json
from pathlib import Path

import pytest

from tests.containers.engine import IMAGE, RESTRICTED, Completed, call, docker, python, run

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

SITE = "/opt/venv/lib/python3.13/site-packages"
CUDA = ("nvidia", "torch", "triton")  # the packages that have a limit of their own
SHORT = ("--num-iterations=20", "--sft-iterations=5", "--threads=1")


def answered(volume: str, options: tuple[str, ...] = ()) -> str:
    """A chat with what was trained on `volume`."""
    done = run("chat", "--prompt", "Who are you?", "--temperature", "0", "--max-tokens", "16", volume=volume, options=options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_size() -> None:
    code = f"""
import json, os
sizes = {{"rest": 0}} | dict.fromkeys({CUDA!r}, 0)
for folder, _, files in os.walk("/"):
    if folder.split("/")[1] not in ("proc", "sys", "dev"):
        part = folder.removeprefix("{SITE}/").split("/")[0] if folder.startswith("{SITE}/") else ""
        sizes[part if part in sizes else "rest"] += sum(os.lstat(os.path.join(folder, name)).st_size for name in files)
print(json.dumps(sizes))
"""
    done = python(code, options=("--user=0",))
    sizes = json.loads(done.stdout)
    print(sizes)
    assert sizes["rest"] <= 0.95e9  # 0.22 of it are transformers, s3fs, tensorboard and gguf, so that every command runs
    assert sum(sizes[name] for name in CUDA) <= 4.5e9


def test_settings() -> None:
    config = json.loads(docker("inspect", IMAGE))[0]["Config"]
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert config["User"] == "10001" and config["StopSignal"] == "SIGTERM" and config["Healthcheck"]["Test"]
    assert config["Entrypoint"][0] == "tini"
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all" and environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert environment["NANOCHAT_BASE_DIR"] == "/data" and environment["TMPDIR"].startswith("/data/")
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    assert python("import pwd, os; print(pwd.getpwuid(os.getuid()).pw_name)").stdout == "nanochat\n"


def test_only_what_runs() -> None:
    """No developer's tool, no test, no cache, nothing of the compilers' own; every module has its bytecode."""
    code = f"""
import importlib.metadata, pathlib
tools = {{"pytest", "ruff", "mypy", "maturin", "hatchling", "uv", "openai", "hypothesis", "pip"}}
print([found.name for found in importlib.metadata.distributions() if found.name in tools])
places = ("/root", "/src", "/wheels", "/lock", "/opt/build", "/var/lib/apt/lists", "/var/cache/apt", "/tmp")
kept = [path for place in places for path in pathlib.Path(place).rglob("*") if path.is_file() and path.stat().st_size]
print([str(path) for path in kept if path.name not in (".bashrc", ".profile", "lock")])
site = pathlib.Path("{SITE}")
print([str(path) for name in ("tests", "bench", "scripts/*.sh", "rustbpe/src") for path in site.glob(name)])
print([str(path) for path in (site / "nanochat").rglob("*.py") if not list((path.parent / "__pycache__").glob(path.stem + ".*.pyc"))])
"""
    done = python(code, options=("--user=0",))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]", "[]", "[]"]


def test_left_out_is_never_loaded() -> None:
    """Every CUDA library loads without what was left out, nothing names it, and Triton compiles for NVIDIA's cards."""
    code = f"""
import ctypes, pathlib, torch
site = pathlib.Path("{SITE}")
libraries = [path for name in {CUDA!r} for path in (site / name).rglob("*.so*") if not path.is_symlink()]
assert len(libraries) > 50
left_out = (b"libcusolverMg", b"libtriton_amd_codegen", b"libproton.so")
print([str(path) for path in libraries if any(name in path.read_bytes() for name in left_out)])
for library in sorted((site / "nvidia").rglob("lib*.so*")):
    if "nvshmem" not in library.name and "rdma" not in library.name:  # those two want a cluster's network libraries
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
print(torch.backends.cudnn.version() > 90000, torch.cuda.is_available())
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "True False"]


KERNEL = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def double(x, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + place, tl.exp(tl.load(x + place, place < n)) * 2, place < n)

if __name__ == "__main__":
    assert list(triton.backends.backends) == ["nvidia"]
    for card in (75, 80, 86, 89, 90, 120):
        source = ASTSource(double, {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}, {(2,): 128})
        built = triton.compile(source, target=GPUTarget("cuda", card, 32))
        print(card, len(built.asm["cubin"]) > 1000)
"""


def test_triton_compiles_for_every_card(volume: str, tmp_path: Path) -> None:
    """Without a card: from Python to machine code, through the assembler that the image carries."""
    (tmp_path / "kernel.py").write_text(KERNEL, encoding="utf-8")
    tmp_path.chmod(0o755)
    done = run("/kernel/kernel.py", options=("--entrypoint=python", "-v", f"{tmp_path}:/kernel:ro"), volume=volume)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{card} True" for card in (75, 80, 86, 89, 90, 120)]


def test_quickstart_with_every_right_taken_away(volume: str) -> None:
    options = (*RESTRICTED, "--env=NO_COLOR=1")
    done = run("quickstart", *SHORT, options=options, volume=volume)
    assert done.returncode == 0, done.stderr
    assert "held-out questions" in done.stdout + done.stderr and "> Who are you?" in done.stdout + done.stderr
    assert answered(volume, RESTRICTED)


def test_as_the_images_own_user_with_torch_compile(volume: str) -> None:
    options = ("--depth=1", "--num-iterations=10", "--sft-iterations=2", "--compile=on", "--threads=1")
    done = run("train", "--profile=cpu", *options, volume=volume)
    assert done.returncode == 0, done.stderr
    assert answered(volume)
    compiled = run("-c", "find /data/cache/cpu-torch* -name '*.so' | wc -l", options=("--entrypoint=sh",), volume=volume)
    assert int(compiled.stdout) > 0


def test_a_cards_profile_without_a_card() -> None:
    done = run("train", "--profile", "rtx4050", timeout=60)
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert done.returncode == 3 and len(errors) == 2 and "Traceback" not in done.stderr, done.stderr
    assert "no CUDA device is visible" in errors[0]
    assert all(word in errors[1] for word in ("driver", "toolkit", "--gpus all", "--profile cpu"))


def test_doctor_without_a_network() -> None:
    """100 MB of disk are enough for the embedded text, and far too little for a card's profile, whose data cannot be fetched either."""
    options = ("--network=none", "--tmpfs=/data:size=100m,mode=1777")
    here, card = (run("doctor", "--json", f"--profile={profile}", options=options) for profile in ("cpu", "rtx4050"))
    assert (here.returncode, card.returncode) == (0, 3), here.stderr + card.stderr
    levels = {finding["id"]: finding["level"] for finding in json.loads(here.stdout)["findings"]}
    assert levels["compiler"] == levels["disk"] == levels["data"] == "ok"
    errors = [finding for finding in json.loads(card.stdout)["findings"] if finding["level"] == "error"]
    assert {finding["id"] for finding in errors} == {"driver", "disk", "network"}
    assert all(finding["means"] and finding["fix"] for finding in errors)


def refused(done: Completed) -> str:
    """The one error line of a command that the data volume could not serve."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 3 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "hint:" in done.stderr
    return errors[0]


def test_full_volume(volume: str) -> None:
    full = f"{volume}-full"
    docker("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=size=3m,mode=1777", full)
    try:
        assert "MB free in /data" in refused(run("quickstart", *SHORT, volume=full))
    finally:
        call("docker", "volume", "rm", "-f", full)


def test_unwritable_volume(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # of another user
    assert "Permission denied" in refused(run("quickstart", *SHORT, volume=str(tmp_path), options=("--user=54321",)))


def test_read_only_volume(volume: str) -> None:
    assert "Read-only file system" in refused(run("quickstart", *SHORT, options=("-v", f"{volume}:/data:ro")))
