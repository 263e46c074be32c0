"""Download of a model's data files from the Hugging Face hub; the only code here that opens a connection."""

from __future__ import annotations

from pathlib import Path

from mobileicsa.core.errors import EnvironmentFault

TIMEOUT_S = 20.0
# Data only: never *.py, never pickles.
PATTERNS = ["*.json", "*.safetensors", "*.jinja"]


def download(name: str, revision: str | None) -> Path:
    """The snapshot folder of `name` (org/model); from the local hub cache where the hub cannot be reached."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise EnvironmentFault(f"{name}: needs huggingface_hub", hint="pip install huggingface_hub") from error
    try:
        # Asked first because it has a time-out of its own; it also pins the commit for the download.
        commit = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S).sha
    except Exception as error:  # the client passes on the errors of several HTTP libraries
        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=PATTERNS))
        except Exception:
            raise EnvironmentFault(
                f"{name}: cannot be found on the model hub (revision {revision or 'main'}): {_first_line(error)}",
                hint="check the name and the network, or download the model and give its folder",
            ) from error
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=PATTERNS, etag_timeout=TIMEOUT_S))
    except Exception as error:
        raise EnvironmentFault(
            f"{name}: download from the model hub failed: {_first_line(error)}",
            hint="run again: finished files are kept in the hub cache",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
