"""`export --push hf:OWNER/NAME` and `--mirror URL`: copies of a written export, on a hub and on any file store.

Both are checked before the model is loaded, as far as that is possible without writing anything.
"""

import contextlib
import os
import re
import shlex
from pathlib import Path
from typing import Any

from nanochat.console import log
from nanochat.errors import DataError, UsageError
from nanochat.hardware.extras import needed
from nanochat.hub.addresses import ENDPOINT, endpoint, hub_token, reason
from nanochat.redaction import remember
from nanochat.runs.mirror import Mirror

TARGET = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})")
TOKENS = "a token that may write is made on the hub's page of access tokens"


class Push:
    """The repository that `--push` names. Raises UsageError for another form, a missing token and a missing package."""

    def __init__(self, target: str):
        found = TARGET.fullmatch(target)
        if not found or ".." in target or "--" in target or target.endswith((".git", ".", "-")):
            raise UsageError(f"--push {target} is not hf:OWNER/NAME", "name a repository of the hub, such as --push hf:alice/my-model")
        self.repo = found[1]
        token = hub_token(endpoint())
        if not token and os.environ.get("HF_TOKEN", "").strip():
            raise UsageError(f"the token is not sent to {endpoint()}, whose address is not https", "set HF_ENDPOINT to an https address")
        if not token:
            raise UsageError("--push needs a token of the hub, and the environment variable HF_TOKEN is not set", f"set HF_TOKEN: {TOKENS}")
        hub = needed("huggingface_hub", "huggingface_hub", "--push")
        if endpoint() != ENDPOINT:  # Xet is a service of the public hub; every hub has the older protocol
            from huggingface_hub import constants

            constants.HF_HUB_DISABLE_XET = True
        self._api: Any = hub.HfApi(endpoint=endpoint(), token=token)

    def send(self, out: Path) -> str:
        """Upload the directory `out` as one commit and return its address. A repository that does not exist is created, private.

        Raises UsageError if the hub refuses the token or the name, DataError if it cannot be reached.
        """
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        later = f"send it later: hf upload {self.repo} {shlex.quote(str(out))}"
        try:
            new = self._created()
            commit = self._api.upload_folder(repo_id=self.repo, folder_path=str(out), commit_message="Export of NanoChat Appliance")
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise UsageError(f"the hub refuses to write {self.repo} with this HF_TOKEN ({status})", f"{TOKENS}; {later}") from error
            raise DataError(f"the hub answered {status} to {self.repo}: {reason(error)}; the export is in {out}", later) from error
        except Exception as error:  # the library and its HTTP client have many
            raise DataError(f"the hub cannot be reached ({reason(error)}); the export is in {out}", later) from error
        if new:
            log(f"{self.repo} is a new private repository; its settings page makes it public")
        return str(commit.commit_url)

    def _created(self) -> bool:
        """Whether the repository is new: created now, private. A token may write to one repository alone, so a refusal is no error yet."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.create_repo(self.repo, private=True)
            return True
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in (403, 409):
                raise
            return False


class ExportMirror:
    """The copy of the export `out` at URL/<its name>. Raises UsageError for an unknown kind of URL or if something is there already."""

    def __init__(self, url: str, out: Path):
        remember(url)
        self._mirror, self._out = Mirror(url, out.name), out
        self.address = f"{self._mirror.url.rstrip('/')}/{out.name}"
        taken = False
        with contextlib.suppress(Exception):  # if it cannot be reached, `send` raises the error once the export is written
            taken = self._mirror.has_other_folder()
        if taken:
            raise self._taken()

    def send(self) -> str:
        """Copy the export and return its address. Raises DataError if the mirror cannot be reached."""
        try:
            if self._mirror.has_other_folder():
                raise self._taken()
            self._mirror.put_folder(self._out)
        except UsageError:
            raise
        except Exception as error:  # each kind of mirror raises its own exceptions
            text = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"the mirror {self.address} cannot be reached ({text})", f"copy {self._out} to it later") from error
        return self.address

    def _taken(self) -> UsageError:
        return UsageError(f"{self.address} exists already", "choose another --out, whose name the copy has, or another --mirror")
