"""The weights of a received directory: one safetensors file, or several with an index, read by name and checked before."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from nanochat import untrusted
from nanochat.export.folder import WEIGHTS
from nanochat.runs.step_files import tensor_shapes

INDEX = "model.safetensors.index.json"
FILES = 10_000  # limit of an index's files


class Weights:
    """Tensors by name, in one or several files. Raises ValueError with the reason if a file or tensor is missing or damaged, OSError."""

    def __init__(self, folder: Path):
        self._files: dict[str, Path] = {}  # tensor -> its file
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _files(folder):
            for name, shape in tensor_shapes(path).items():
                if name in self._files:
                    raise ValueError(f"{untrusted.shown(name)} is in two files")
                self._files[name], self.shapes[name] = path, shape

    def read(self, name: str) -> Tensor:
        """A tensor."""
        with safe_open(self._files[name], "pt") as file:
            found: Tensor = file.get_tensor(name)
        return found


def _files(folder: Path) -> list[Path]:
    """The files with weights."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        if not (folder / WEIGHTS).exists():
            other = next((path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern)), "")
            found = f"; {untrusted.shown(other)} is of a kind that is not read" if other else ""
            raise ValueError(f"it has no {WEIGHTS} and no {INDEX}{found}")
        return [untrusted.inside(folder, WEIGHTS)]
    index = untrusted.table(untrusted.read_json(untrusted.inside(folder, INDEX)), INDEX)
    names = sorted({untrusted.file_name(name) for name in untrusted.table(index["weight_map"], "weight_map").values()})
    if len(names) > FILES:
        raise ValueError(f"{INDEX} names {len(names):,} files")
    for name in names:
        if not (folder / name).exists():
            raise ValueError(f"{name}, which {INDEX} names, is missing")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{name}, which {INDEX} names, is not a safetensors file")
    return [untrusted.inside(folder, name) for name in names]
