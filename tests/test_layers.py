"""The package's structure: imports point down one table and never in a circle; packages, files and functions have a bounded size."""

import ast
import graphlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat import LAYERS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, CRATE = ROOT / "nanochat", ROOT / "rustbpe" / "src"
LEVEL = {name: (row, place if row == 0 else 0) for row, names in enumerate(LAYERS) for place, name in enumerate(names)}
ENTRY_POINTS = {"__init__", "__main__", "dataset"}  # `python -m nanochat` and `python -m nanochat.dataset`: they may import anything
LARGEST_PACKAGE = 1 / 6  # of the package's lines, chat/web/ not counted
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
REASON = "long: "  # begins the comment that says why a file or a function is longer


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import statement, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> Iterator[tuple[str, Path]]:
    """The package's files, each with the name in LAYERS that it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name not in ENTRY_POINTS:
            yield name, path


def below(target: str, name: str) -> bool:
    """Whether `name` may import `target`: from a row before its own, in the first row from a name before its own."""
    return LEVEL[target] < LEVEL[name] and (LEVEL[target][0] < LEVEL[name][0] or LEVEL[name][0] == 0)


def test_the_table_names_every_package() -> None:
    assert {name for name, _ in modules()} == set(LEVEL)
    assert len(LEVEL) == sum(map(len, LAYERS))


def test_imports_point_down_the_table() -> None:
    wrong = []
    for name, path in modules():
        for imported in imports(path):
            top, _, rest = imported.partition(".")
            target = rest.split(".")[0]
            ours = top == "nanochat" and target not in ("", name)
            foreign = top in ("scripts", "entrypoint", "tests", "bench") or (ours and target in ENTRY_POINTS)
            if foreign or (ours and not below(target, name)):
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    assert wrong == []


def test_the_model_knows_no_ranks_and_no_environment() -> None:
    for path in (PACKAGE / "model").glob("*.py"):
        assert not {"os", "sys", "torch.distributed"} & imports(path), path


def test_modules_import_each_other_in_no_circle() -> None:
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts) for _, path in modules()}
    graph = {}
    for _, path in modules():
        named = imports(path)
        graph[".".join(path.relative_to(ROOT).with_suffix("").parts)] = (named | {name.rpartition(".")[0] for name in named}) & known
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_the_crates_modules_use_each_other_in_no_circle() -> None:
    def module(path: Path) -> str:
        return "::".join(part for part in path.relative_to(CRATE).with_suffix("").parts if part not in ("mod", "lib"))

    paths = {module(path): path for path in CRATE.rglob("*.rs") if path.name != "tests.rs"}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        code = re.sub(r"//.*", "", path.read_text(encoding="utf-8").split("#[cfg(test)]")[0])
        used = set()
        for start, names in re.findall(r"\buse (crate(?:::\w+)*|super(?:::\w+)*)::(\{[^}]*\}|\w+)", code):
            base = name.rpartition("::")[0].split("::") if start.startswith("super") else []
            prefix = [*filter(None, base), *start.split("::")[1:]]
            used |= {"::".join([*prefix, leaf.strip()]) for leaf in names.strip("{}").split(",")} | {"::".join(prefix)}
        graph[name] = (used & set(paths)) - {name, name.rpartition("::")[0]}
    assert sum(map(len, graph.values())) > 10
    graphlib.TopologicalSorter(graph).prepare()


def test_no_package_holds_over_a_sixth_of_the_lines() -> None:
    lines: Counter[str] = Counter()
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".c", ".h"):
            lines[path.relative_to(PACKAGE).parts[0]] += len(path.read_text(encoding="utf-8").splitlines())
    largest, count = lines.most_common(1)[0]
    assert count <= LARGEST_PACKAGE * lines.total(), f"{largest}/ has {count} of {lines.total()} lines"


def test_long_files_say_why() -> None:
    files = [path for top in (PACKAGE, CRATE) for path in top.rglob("*") if path.suffix in (".py", ".c", ".h", ".js", ".rs")]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.name != "tests.rs"}
    assert [path for path, text in texts.items() if len(text.splitlines()) > LONGEST_FILE and REASON not in text[:2000]] == []


def test_long_functions_say_why() -> None:
    wrong = []
    for _, path in modules():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_source_segment(path.read_text(encoding="utf-8"), node) or ""
                if len(text.splitlines()) > LONGEST_FUNCTION and REASON not in text:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert wrong == []


def test_nonlocal_says_why() -> None:
    for _, path in modules():
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(parse(path)):
            assert not isinstance(node, ast.Nonlocal) or "#" in lines[node.lineno - 1] + lines[node.lineno - 2], f"{path}:{node.lineno}"


@pytest.mark.parametrize(("words", "home"), [("EMBEDDED", "data/source.py"), ("fused.usable", "")])
def test_what_is_decided_in_one_place(words: str, home: str) -> None:
    """Which text a run has, and which kernels a model uses: the words of the question are in one file beside their definition."""
    found = {str(path.relative_to(PACKAGE)) for name, path in modules() if words in path.read_text(encoding="utf-8") and name != "config"}
    assert found <= {home}
