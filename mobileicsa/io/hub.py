"""Download of a model's data files from the Hugging Face hub; the only code here that opens a connection."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensors import INDEX_FILE, INDEX_MAX_BYTES, SINGLE_FILE

TIMEOUT_S = 10.0
# Data only, never *.py or pickles; weights are asked for by name.
PATTERNS = ("*.json", "*.jinja")
# Other formats of the same model lie in folders of their own.
BELOW = "*/*"
_TELEMETRY = "HF_HUB_DISABLE_TELEMETRY"

log = logging.getLogger(__name__)


def download(name: str, revision: str | None) -> Path:
    """The snapshot folder of `name` (org/model), named by its commit; from the local cache where the hub fails.

    Raises EnvironmentFault where neither has it.
    """
    # The client would otherwise tell, and first ask, the hub what program it runs under.
    os.environ.setdefault(_TELEMETRY, "1")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise EnvironmentFault(f"{name}: needs huggingface_hub", hint="pip install huggingface_hub") from error
    try:
        # Asked first because it has a time-out of its own.
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    except Exception as error:  # the client passes on the errors of several HTTP libraries
        return _cached(name, revision, error)
    try:
        # By the revision's own name, so that the cache learns which commit it is; the rest by that commit.
        folder = _fetch(name, revision, PATTERNS)
        weights = [SINGLE_FILE] if SINGLE_FILE in sizes else _shards(folder)
        total = sum(sizes.get(file, 0) for file in weights)
        log.info("%s: %.1f MiB of weights from the model hub, or its cache where they are there", name, total / 2**20)
        return _fetch(name, folder.name, [glob.escape(file) for file in weights]) if weights else folder
    except InputError:
        raise
    except Exception as error:
        raise EnvironmentFault(
            f"{name}: download from the model hub failed: {_reason(error)}",
            hint="run again: finished files are kept in the hub cache",
        ) from error


def _fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=[BELOW], etag_timeout=TIMEOUT_S
        )
    )


def _shards(folder: Path) -> list[str]:
    """The weight files that the index names; what is wrong with it is for the reader of the folder to say."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return []
    weight_map = read_json(index, max_bytes=INDEX_MAX_BYTES).get("weight_map")
    files = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    return sorted(file for file in files if isinstance(file, str) and file.endswith(".safetensors"))


def _cached(name: str, revision: str | None, error: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:
        raise EnvironmentFault(
            f"{name}: cannot be found on the model hub (revision {revision or 'main'}): {_reason(error)}",
            hint="check the name and the network, or download the model and give its folder",
        ) from error
    log.warning("%s: %s; the copy in the hub cache is used, commit %s", name, _reason(error), folder.name)
    return folder


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    known = (
        (errors.GatedRepoError, "access is restricted: accept its terms on the hub, then set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "no such model, or a private one (set HF_TOKEN)"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids to ask the hub"),
    )
    for kind, words in known:
        if isinstance(error, kind):
            return words
    if "timeout" in type(error).__name__.lower():
        return f"no answer within {TIMEOUT_S:g} s"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
