"""karpathy/nanochat's own files on a plain web server: their addresses, and the evaluation bundle."""

import os
import re
import shutil
import zipfile
from pathlib import Path

from nanochat.console import log
from nanochat.errors import DataError
from nanochat.hub.addresses import Remote
from nanochat.hub.download import require_space
from nanochat.hub.transfer import fetch
from nanochat.paths import atomic_folder, base_dir, dataset_dir, disk_error, locked

ASSETS = "https://karpathy-public.s3.us-west-2.amazonaws.com"  # NANOCHAT_ASSET_URL replaces it
BUNDLE = "eval_bundle"
BUNDLE_BYTES, BUNDLE_MOST = 170_000_000, 2 * 10**9  # of its archive, about, and what it may unpack to at most


def asset_url(name: str) -> str:
    """Where karpathy/nanochat's own files lie, or NANOCHAT_ASSET_URL's copy of them."""
    place = os.environ.get("NANOCHAT_ASSET_URL") or ASSETS
    folder = re.split(r"[?#]", place, maxsplit=1)[0]
    return f"{folder.rstrip('/')}/{name}{place[len(folder) :]}"  # a query, which may hold a signature, stays at the end


def has_bundle() -> bool:
    """Whether the evaluation bundle is there."""
    return (base_dir() / BUNDLE / "core.yaml").is_file()


def ensure_bundle() -> Path:
    """The evaluation bundle, unpacked: eval_bundle/ in the data directory, with core.yaml in it. Raises DataError."""
    folder = base_dir() / BUNDLE
    if has_bundle():
        return folder
    url, archive = asset_url(f"{BUNDLE}.zip"), dataset_dir("tasks") / f"{BUNDLE}.zip"
    log(f"fetching {url}")
    log("warning: no hash is published for it: it is checked by size, and by the sums in the archive")
    try:
        with locked(archive.parent / ".lock", "another download"):
            if not has_bundle():
                fetch(Remote(url, archive.name), archive.parent)
                _unpack(archive, folder)
    except DataError as error:
        hint = error.hint or f"run again, or unpack it to {folder} (NANOCHAT_ASSET_URL names a mirror)"
        raise DataError(error.message, hint) from error
    except OSError as error:
        raise disk_error(error, "unpacking the evaluation bundle") from error
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` so that `folder` appears whole. Raises DataError for one that is damaged, too large, or leads elsewhere."""
    try:
        with zipfile.ZipFile(archive) as found:
            entries = [entry for entry in found.infolist() if not entry.is_dir() and entry.filename.startswith(f"{BUNDLE}/")]
            size = sum(entry.file_size for entry in entries)
            require_space("unpacking the evaluation bundle", size, folder)
            if size > BUNDLE_MOST or any(".." in entry.filename.split("/") or "\\" in entry.filename for entry in entries):
                raise DataError(f"{archive} is not the evaluation bundle: {size} bytes, or names that lead elsewhere")
            with atomic_folder(folder) as temporary:
                for entry in entries:
                    target = temporary / entry.filename.removeprefix(f"{BUNDLE}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with found.open(entry) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{archive} is no zip archive that can be read: {error}") from error
    finally:
        archive.unlink(missing_ok=True)
