"""karpathy/nanochat's own files on a plain web server: their addresses, and the evaluation bundle."""

import os
import re
from pathlib import Path

from nanochat.console import VERBOSE, log
from nanochat.errors import DataError
from nanochat.hub.addresses import Remote
from nanochat.hub.archive import extract_zip
from nanochat.hub.transfer import fetch
from nanochat.paths import base_dir, dataset_dir, disk_error, locked

ASSETS = "https://karpathy-public.s3.us-west-2.amazonaws.com"  # NANOCHAT_ASSET_URL replaces it
BUNDLE = "eval_bundle"
BUNDLE_BYTES = 170_000_000  # of its archive, about
ARCHIVE_MOST, BUNDLE_MOST = 10**9, 2 * 10**9  # of its archive at most, and what it may unpack to
# The archive's SHA-256, which pins it. Empty: its publisher names none, and a hash that nobody has checked against the original would
# only look like a proof. Where it is set, another file is refused, also a mirror's.
BUNDLE_SHA256 = ""


def asset_url(name: str) -> str:
    """The address of a file that karpathy/nanochat publishes, or of its copy under NANOCHAT_ASSET_URL."""
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
    log(f"fetching {url}", level=VERBOSE)
    if not BUNDLE_SHA256:
        log("warning: no hash is published for it: its size and the checksums in the archive are checked")
    try:
        with locked(archive.parent / ".lock", "another download"):
            if not has_bundle():
                fetch(Remote(url, archive.name, sha256=BUNDLE_SHA256 or None, most=ARCHIVE_MOST), archive.parent)
                try:
                    extract_zip(archive, folder, BUNDLE, BUNDLE_MOST)
                finally:
                    archive.unlink(missing_ok=True)
    except DataError as error:
        hint = error.hint or f"run again, or unpack it to {folder} (NANOCHAT_ASSET_URL names a mirror)"
        raise DataError(error.message, hint) from error
    except OSError as error:
        raise disk_error(error, "unpacking the evaluation bundle") from error
    return folder
