"""The wheel: the package with the profiles and the guide's scripts in it, and nothing else; installed by uv, it works from any folder."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_what_is_inside(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    outside = {name for name in names if not name.startswith("nanochat/")}
    assert outside == {"scripts/__init__.py", "scripts/base_train.py", "scripts/chat_web.py"}
    assert {name for name in names if name.startswith("nanochat/profiles/")} == {
        f"nanochat/profiles/{path.name}" for path in (ROOT / "profiles").glob("*.toml")
    }


def test_commands_are_functions_of_the_package(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Away from the checkout: each console script's function, the guide's modules, and a profile."""
    wheel.extractall(tmp_path)
    code = """
import importlib, configparser, sys
from pathlib import Path
import nanochat.config, scripts.base_train, scripts.chat_web

points = configparser.ConfigParser()
points.read(next(Path(sys.argv[1]).glob("*.dist-info/entry_points.txt")))
for name, point in points["console_scripts"].items():
    module, _, function = point.partition(":")
    print(name, callable(getattr(importlib.import_module(module), function)))
print(nanochat.config.PROFILES.relative_to(sys.argv[1]), nanochat.config.build_config("4090").depth)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd="/", env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["nanochat True", "torchrun True", "nanochat/profiles 16"], done.stderr


@pytest.mark.slow
def test_installed_as_a_tool(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """From the two wheels of a release into an empty home: the quickstart, a chat, and the page, away from the checkout."""
    wheels = Path(wheel.filename or "").parent
    maturin = ["maturin", "build", "--release", "--quiet", "--manifest-path", "rustbpe/Cargo.toml", "--interpreter", sys.executable]
    subprocess.run([sys.executable, "-m", *maturin, "--out", str(wheels)], cwd=ROOT, check=True)
    uv = str(ROOT / ".venv/bin/uv")
    cache = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    kept = {key: os.environ[key] for key in os.environ if key.startswith(("PIP_", "SSL_", "UV_")) or key.lower().endswith("_proxy")}
    environment = kept | {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "UV_CACHE_DIR": cache, "UV_SYSTEM_CERTS": "1", "NO_COLOR": "1"}

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stdout + done.stderr

    call(uv, "tool", "install", "--python", sys.executable, "--find-links", str(wheels), "nanochat-appliance")
    nanochat = str(tmp_path / ".local/bin/nanochat")
    trained = call(nanochat, "quickstart")
    (score,) = re.findall(r"^all +640 .* ([0-9.]+)%$", trained, re.MULTILINE)
    assert float(score) > 90, trained
    assert list((tmp_path / ".cache/nanochat").rglob("*.so"))  # the kernels' sources are in the wheel, and were compiled
    assert "46" in call(nanochat, "chat", "--prompt", "What is 12 + 34?", "--temperature", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [nanochat, "serve", f"--port={port}"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            next(line for line in server.stderr if str(port) in line)
            page = b""
            while not page:
                with contextlib.suppress(ConnectionRefusedError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                    page = answer.read()
        finally:
            server.terminate()
    assert b"<html" in page
