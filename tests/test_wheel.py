"""The wheel: the package with the profiles inside it and the guide's scripts, and nothing else; it works from any folder."""

import os
import subprocess
import sys
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
