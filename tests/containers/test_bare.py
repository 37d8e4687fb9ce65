"""The README's line for Debian, and the installation, on a Debian that has Python and neither venv, pip, make nor sudo.

Also on the Debian after 13, whose Python is 3.14, as on Ubuntu 26.04.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.containers.engine import ROOT, call, prepare

pytestmark = pytest.mark.container


@pytest.mark.parametrize(
    ("suite", "version", "command"),
    [("trixie", "3.13", "nanochat --help"), pytest.param("forky", "3.14", "make quickstart", marks=pytest.mark.slow)],
)
def test_the_readmes_packages_are_enough(suite: str, version: str, command: str, engine: None, tmp_path: Path) -> None:
    prepare(suite)
    line = re.search(r"```sh\n(sudo apt-get .*)\n", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert line
    files = call("git", "ls-files", "-z").stdout
    packed = tmp_path / "checkout.tar"
    assert call("git", "ls-files", "-z").returncode == 0 and files
    assert call("sh", "-c", f"git ls-files -z | tar -c --null -T - -f {packed}").returncode == 0
    script = f"""
set -e
echo 'Acquire::Check-Valid-Until "false";' >/etc/apt/apt.conf.d/99-mirror  # an unreleased Debian's lists expire, and a mirror may be older
apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 >/dev/null
! command -v make && ! command -v pip && ! python3 -c 'import ensurepip' 2>/dev/null
cd /checkout && tar -xf /checkout.tar
export DEBIAN_FRONTEND=noninteractive
sudo() {{ "$@"; }}  # a container is root, and has no sudo
{line[1]}
make install
. .venv/bin/activate
python --version
{command}
"""
    cache = call(".venv/bin/uv", "cache", "dir").stdout.strip()
    (tmp_path / "checkout").mkdir()  # outside the container's own file system, which is slow to take six gigabytes
    done = call(
        *("docker", "run", "--rm", "-v", f"{packed}:/checkout.tar:ro", "-v", f"{cache}:/cache", "-e", "UV_CACHE_DIR=/cache"),
        *("-v", f"{tmp_path / 'checkout'}:/checkout"),
        *("-e", "UV_LINK_MODE=copy", f"debian:{suite}-slim", "bash", "-c", script),
        timeout=1500,
    )
    shutil.rmtree(tmp_path)  # pytest would keep its six gigabytes, and the image is yet to be built
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"Python {version}." in done.stdout and "quickstart" in done.stdout + done.stderr
