"""Kernels that are compiled together: each is itself, in few files, and an odd one goes Inductor's own way."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._inductor.utils import fresh_cache

from nanochat.train import kernels

pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("g++"), reason="no g++")]

ADD = '#include <cstdint>\nextern "C" void kernel(float* x, const int64_t n) { for (int64_t i = 0; i < n; i++) x[i] += %d; }\n'
TYPES = ["float*", "const int64_t"]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty compile cache."""
    with fresh_cache(dir=str(tmp_path)):
        yield Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


@pytest.mark.parametrize(("threads", "files"), [(1, 1), (4, 2), (64, 5)])
def test_each_kernel_is_itself_in_however_many_files(threads: int, files: int, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "get_compile_threads", lambda: threads)
    compiler = kernels._TogetherCompile()
    scope = {amount: compiler.cpp_pybinding(TYPES, ADD % amount + "//" * amount) for amount in (5, 1, 4, 2, 3)}
    compiler.wait(scope)
    for amount, add in scope.items():
        x = torch.zeros(7)
        add(x, 6)
        assert x.tolist() == [amount] * 6 + [0]
    assert len(list(cache.rglob("*.main.so"))) == files


def test_an_odd_kernel_goes_its_own_way(cache: Path) -> None:
    compiler = kernels._TogetherCompile()
    odd = (ADD % 7).replace('"C" void', '"C" __attribute__((noinline)) void')
    scope = {"usual": compiler.cpp_pybinding(TYPES, ADD % 3), "odd": compiler.cpp_pybinding(TYPES, odd)}
    compiler.wait(scope)
    x = torch.zeros(2)
    scope["usual"](x, 2)
    scope["odd"](x, 1)
    assert x.tolist() == [10, 3]


def test_what_does_not_compile_says_why_when_it_is_called(cache: Path) -> None:
    compiler = kernels._TogetherCompile()
    scope = {"broken": compiler.cpp_pybinding(TYPES, (ADD % 1).replace("x[i]", "y[i]"))}
    compiler.wait(scope)
    with pytest.raises(Exception, match="was not declared in this scope"):
        scope["broken"](torch.zeros(1), 1)


WHOLE = """
import torch
from nanochat.train.kernels import compile_together

def loss(x, weight):
    hidden = (x @ weight).sigmoid()
    return ((hidden @ weight).softmax(-1) * hidden.softmax(0)).sum(-1).log().sum()

x, weight = torch.randn(64, 48), torch.randn(48, 48, requires_grad=True)
wanted = torch.autograd.grad(loss(x, weight), weight)[0]
compile_together()
compiled = torch.compile(loss, dynamic=False)
torch.testing.assert_close(compiled(x, weight), loss(x, weight), rtol=1e-4, atol=1e-4)
torch.testing.assert_close(torch.autograd.grad(compiled(x, weight), weight)[0], wanted, rtol=1e-4, atol=1e-5)
"""


def test_a_function_and_its_gradient_in_one_file_each(tmp_path: Path) -> None:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", WHOLE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*.main.so"))) == 2
