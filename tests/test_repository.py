"""The repository: links, make targets, the lock, the profiles and the image agree with the files and the code."""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nanochat.config import PROFILE_NAMES, build_config, load_profile

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-TW.md")
DOCUMENTS = [str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])]
# Package registries, and directories that only one machine has. The dots and the group keep these lines from matching themselves.
REGISTRIES = r"pypi\.org|pythonhosted\.org|static\.crates\.io|deb\.debian\.org|npmjs\.|download\.pytorch"
MACHINES = r"/(?:(?:root|work|Users)/|opt/wheels)"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Every file that git tracks, or would."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(name for name in listed if (ROOT / name).is_file())


def test_tests_mirror_the_package(files: list[str]) -> None:
    folders = {str(Path(name).parent.relative_to("tests")) for name in files if name.startswith("tests/") and name.endswith(".py")}
    assert [folder for folder in folders - {"containers", "crate", "nullgpu"} if not (ROOT / "nanochat" / folder).is_dir()] == []


def plain(document: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.M | re.S)


def headings(document: str) -> list[tuple[int, str]]:
    """(level, text) of each heading."""
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", plain(document), re.M)]


def anchors(document: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    found: list[str] = []
    for _, text in headings(document):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", text).lower()).replace(" ", "-")
        found.append(f"{words}-{found.count(words)}" if words in found else words)
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?[^)]*\)", plain(document)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (ROOT / document).parent.joinpath(target).resolve() if target else ROOT / document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(str(path.relative_to(ROOT))), f"{target}#{anchor}"


def test_anchors_are_those_of_github() -> None:
    assert {"older-debian-and-ubuntu", "1-install-the-tools"} <= anchors("docs/start/linux.md")


IN_BOTH = [
    "README",
    *(f"docs/start/{page}" for page in ("windows", "linux", "docker")),
    *(f"docs/guides/{page}" for page in ("train", "your-text", "chat-and-api", "export", "evaluate", "reinforcement-learning", "cluster")),
    *("docs/from-the-guide", "docs/troubleshooting"),
    *(f"docs/reference/{page}" for page in ("cli", "settings", "exit-codes", "profiles", "glossary")),
]


@pytest.mark.parametrize("page", IN_BOTH)
def test_both_languages_have_the_same_sections(page: str) -> None:
    english, chinese = (headings(page + end) for end in (".md", ".zh-TW.md"))
    assert english and [level for level, _ in english] == [level for level, _ in chinese]


@pytest.mark.parametrize("page", [f"{page}.md" for page in IN_BOTH])
def test_each_language_leads_to_the_other(page: str) -> None:
    chinese = page.replace(".md", ".zh-TW.md")
    assert f"]({Path(chinese).name})" in read(page) and f"]({Path(page).name})" in read(chinese)


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_is_short(readme: str) -> None:
    assert len(read(readme).splitlines()) <= 150


def test_the_security_table_names_tests_that_exist() -> None:
    """Each row of the table in docs/security.md: a promise, and the tests that hold it."""
    table = read("docs/security.md").partition("| promise | tests |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) > 30 and len(set(table)) == len(table)
    for row in table:
        promise, tests = row.removeprefix("| ").removesuffix(" |").split(" | ")
        for name in tests.split(", "):
            found = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", name)
            assert found, f"{promise}: {name}"
            tree = ast.parse(read(found[1])) if (ROOT / found[1]).is_file() else ast.Module([], [])
            assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{promise}: {name}"


def test_make_targets() -> None:
    """The READMEs name two commands, CONTRIBUTING.md all of them."""
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M)) - {"help"}
    named = {name: set(re.findall(r"(?:^|`)make ([a-z-]+)", read(name), re.M)) for name in (*READMES, "CONTRIBUTING.md")}
    assert all({"quickstart", "test"} <= named[readme] <= targets for readme in READMES)
    assert named["CONTRIBUTING.md"] == targets


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_has_its_two_commands_in_a_block(readme: str) -> None:
    block = r"```sh\nmake quickstart +#[^\n]*\nmake test +#[^\n]*\n```"
    assert len(re.findall(block, read(readme))) == 1
    assert "`docker compose run train --profile rtx4050`" in read(readme) and "`docker compose up chat`" in read(readme)


def locked() -> dict[str, str]:
    """Requirement (name==version ; marker) -> the lines below it in requirements.lock."""
    blocks = re.split(r"^(?=[a-z0-9])", "".join(line for line in read("requirements.lock").splitlines(True) if line[0] != "#"), flags=re.M)
    return {block.splitlines()[0].rstrip(" \\"): block for block in blocks if block.strip()}


def test_lock_has_hashes_and_no_index() -> None:
    for requirement, block in locked().items():
        assert re.match(r"[a-z0-9-]+==\S+", requirement)
        assert "--hash=sha256:" in block, requirement
    assert not re.search(r"^\s*--(index|extra|find)|://| @ ", read("requirements.lock"), re.M)
    assert "nanochat-rustbpe==" not in read("requirements.lock")


def test_pyproject_pins_what_the_lock_pins() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    torch = [requirement for requirement in project["project"]["dependencies"] if requirement.startswith("torch")]
    assert torch and torch[0] in locked()
    assert project["tool"]["uv"]["constraint-dependencies"] == list(locked()), "run make lock"


@pytest.mark.slow
def test_every_extra_can_stand_beside_the_lock(tmp_path: Path) -> None:
    """`uv sync --extra gpu` looks for versions of all extras; asks the registry."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "rustbpe", tmp_path / "rustbpe", ignore=shutil.ignore_patterns("target"))
    command = [sys.executable, "-m", "uv", "lock", "--dry-run"]
    found = subprocess.run(command, cwd=tmp_path, env=os.environ | {"UV_SYSTEM_CERTS": "1"}, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.parametrize("backend", ["rocm7.0", "xpu"])
def test_a_torch_for_other_makers_gpus_is_refused_before_anything_is_installed(backend: str) -> None:
    command = ["bash", str(ROOT / "scripts/install.sh")]
    done = subprocess.run(command, env=os.environ | {"TORCH_BACKEND": backend}, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and f"error: TORCH_BACKEND={backend} is not supported" in done.stderr, done.stderr
    assert 'rocm*|xpu) echo "error: TORCH_BACKEND=$TORCH_BACKEND is not supported' in read("Dockerfile.cuda")


def test_no_registry_and_no_machine_is_named(files: list[str]) -> None:
    for name in files:
        if name != "rustbpe/Cargo.lock":  # Cargo itself writes its index there
            text = (ROOT / name).read_bytes().decode("utf-8", "replace")
            assert re.findall(f"{REGISTRIES}|{MACHINES}", text) == [], name


def test_line_endings_and_modes(files: list[str]) -> None:
    for name in files:
        data = (ROOT / name).read_bytes()
        if b"\0" in data[:8000]:
            continue
        assert b"\r\n" not in data, f"{name}: CRLF"
        assert not data or data.endswith(b"\n"), f"{name}: no newline at the end"
        if data.startswith(b"#!"):
            assert os.access(ROOT / name, os.X_OK), f"{name}: not executable"


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_profiles_parse(name: str) -> None:
    assert {path.stem for path in (ROOT / "profiles").glob("*.toml")} == set(PROFILE_NAMES)
    for trial in (False, True):
        assert load_profile(name, trial)["profile"] == name
        assert build_config(name, trial).run == name + ("-trial" if trial else "")


KEYS = (
    *("depth", "device_batch_size", "max_seq_len", "total_batch_size", "num_iterations"),
    *("sample_every", "compile", "shards", "nproc_per_node"),
)
GUIDE = {
    "rtx4050": (4, 1, 256, 512, 100, 20, "off", 2, 1),
    "rtx4090": (12, 4, 512, 4096, 100, 50, "auto", 2, 1),
    "3090": (12, 4, 512, 4096, 100, 50, "auto", 2, 1),
    "h100x8": (32, 8, 2048, -1, 100, -1, "auto", 8, 8),
}


@pytest.mark.parametrize("name", GUIDE)
def test_trials_are_the_guides_plans(name: str) -> None:
    config = build_config(name, trial=True)
    assert tuple(getattr(config, key) for key in KEYS) == GUIDE[name]


def test_help_is_fast_and_leaves_torch_alone() -> None:
    command = [str(ROOT / "entrypoint.py"), "--help"]
    first = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    assert "quickstart" in first.stdout
    assert not re.search(r"\| +(torch|pyarrow|numpy)$", first.stderr, re.M)
    seconds = []
    for _ in range(3):  # processor time, because other tests keep the cores busy meanwhile
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"--help: {min(seconds):.2f} s of processor time")
    assert min(seconds) < 0.5


def test_the_image_installs_what_runs(tmp_path: Path) -> None:
    """scripts/lock_parts.py deals out the lock: the dependencies of the project and its group `run`, once each, with their hashes."""
    subprocess.run([sys.executable, str(ROOT / "scripts/lock_parts.py"), str(tmp_path)], cwd=ROOT, check=True)
    layers = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert set(layers) == {"run", "dev", "uv", "build", "cuda", "torch", "others"}
    assert all(block in read("requirements.lock") for text in layers.values() for block in re.split(r"^(?=[a-z0-9])", text, flags=re.M))
    names = {layer: re.findall(r"^([a-z0-9-]+)==", text, re.M) for layer, text in layers.items()}
    runs = names["cuda"] + names["torch"] + names["others"]
    project = tomllib.loads(read("pyproject.toml"))
    needs = [*project["project"]["dependencies"], *project["dependency-groups"]["run"]]
    asked = {re.split("[>=]", need)[0] for need in needs} - {"nanochat-rustbpe"}
    assert len(runs) == len(set(runs)) and asked <= set(runs)
    assert {"pydantic-core", "nvidia-cublas", "triton", "sympy"} <= set(runs)
    tools = {"pytest", "ruff", "mypy", "openai", "hypothesis", "playwright", "schemathesis"}
    assert not tools & set(runs) and tools <= set(names["dev"])
    assert set(names["run"]) == {*runs, *names["build"], "uv"}  # `make install` has what the image has, and the builders
    assert not set(names["run"]) & set(names["dev"])
    assert {*names["run"], *names["dev"]} == {requirement.partition("==")[0] for requirement in locked()}
    assert names["uv"] == ["uv"] and {"maturin", "hatchling", "pluggy"} <= set(names["build"])
