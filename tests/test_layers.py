"""The package's structure: imports point down one table, no circles, no package that grows into an attic, no file too long to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

from nanochat import LAYERS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nanochat"
LEVEL = {name: (row, place if row == 0 else 0) for row, names in enumerate(LAYERS) for place, name in enumerate(names)}
DOORS = {"__init__", "__main__", "dataset"}  # what `python -m nanochat` and `python -m nanochat.dataset` start: they may import anything


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import statement, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> Iterator[tuple[str, Path]]:
    """The package's files, each with the name in LAYERS that it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in DOORS:
            yield room, path


def test_the_table_names_every_package() -> None:
    assert {room for room, _ in modules()} == set(LEVEL)
    assert len(LEVEL) == sum(map(len, LAYERS))


def below(target: str, room: str) -> bool:
    """Whether `room` may import `target`: from a row before its own, in the first row from a name before its own."""
    return LEVEL[target] < LEVEL[room] and (LEVEL[target][0] < LEVEL[room][0] or LEVEL[room][0] == 0)


def test_imports_point_down_the_table() -> None:
    wrong = []
    for room, path in modules():
        for name in imports(path):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            ours = top == "nanochat" and target not in ("", room)
            foreign = top in ("scripts", "entrypoint", "tests", "bench") or (ours and target in DOORS)
            if foreign or (ours and not below(target, room)):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []
