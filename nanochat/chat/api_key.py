"""The API key of the server, from a file or from NANOCHAT_API_KEY; a key that can be guessed or read by others is refused."""

import os
import shlex
import stat
from pathlib import Path

from nanochat.errors import UsageError

VARIABLE = "NANOCHAT_API_KEY"
MIN_CHARACTERS = 16
MIN_DIFFERENT = 5  # characters; random hexadecimal of that length has fewer once in a million
MAX_BYTES = 4096
OTHERS = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP  # a group may read: Kubernetes mounts a secret so for a pod's user


def read_key(file: Path | None) -> str:
    """The key that clients must send: of `file`, else of NANOCHAT_API_KEY, "" where neither is given. Raises UsageError."""
    if file is None:
        key = os.environ.get(VARIABLE, "").strip()
        return _checked(key, f"the key in {VARIABLE}", f'make one: export {VARIABLE}="$(openssl rand -hex 24)"') if key else ""
    name = shlex.quote(str(file))
    make = f"make one: openssl rand -hex 24 > {name} && chmod 600 {name}"
    try:
        with file.expanduser().open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.read(MAX_BYTES + 1).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key cannot be read from {file}: {error}", "write only the key into the file") from error
    if not text:
        raise UsageError(f"{file} is empty", make)
    key = _checked(text, f"the key in {file}", make)
    if mode & OTHERS:
        may = "change" if mode & (stat.S_IWOTH | stat.S_IWGRP) else "read"
        raise UsageError(
            f"other users of this machine may {may} {file} (mode {stat.S_IMODE(mode):04o})",
            f"run `chmod 600 {name}`, or set {VARIABLE} if the file system keeps no permissions",
        )
    return key


def _checked(key: str, what: str, hint: str) -> str:
    """`key`, or UsageError if it is too weak or no key at all."""
    if not key.isprintable() or len(key) > MAX_BYTES:
        raise UsageError(f"{what} is not one line of text", hint)
    if len(key) < MIN_CHARACTERS:
        raise UsageError(f"{what} has fewer than {MIN_CHARACTERS} characters", hint)
    if len(set(key)) < MIN_DIFFERENT:
        raise UsageError(f"{what} repeats fewer than {MIN_DIFFERENT} characters", hint)
    return key
