"""The manifest: size and SHA-256 of every file, written last, so that nothing half written looks whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.core.errors import InputError, VerificationError
from mobileicsa.io.hashing import sha256_bytes, sha256_file
from mobileicsa.io.json_file import dump_json, read_json, write_json
from mobileicsa.io.paths import inside
from mobileicsa.models.exit_files import EXITS

# 1: without a checksum of the manifest itself; read as it is. 2: with one.
ARTIFACT_FORMAT = 2
OLDEST_FORMAT = 1
# Files rewritten by eval, bench and report after the build: their hashes would go stale by design.
MUTABLE = (layout.REPORT, layout.REPORT_PAGE, layout.CARD, layout.LATENCY_FIGURE)
# A manifest that forgot one of these would leave it unchecked.
_ALWAYS = (layout.CONFIG, layout.PLAN, layout.WEIGHTS, layout.GOLDEN)
# Kinds of artifact; a manifest that names none is of a decoder.
DECODER, EARLY_EXIT = "decoder", "early-exit"
REQUIRED = {DECODER: (*_ALWAYS, layout.TOKENIZER, layout.GREEDY), EARLY_EXIT: (*_ALWAYS, EXITS)}
# What a command says that is given the other kind.
HINTS = {
    DECODER: "`mobileicsa run DIR --prompt TEXT`, or one of eval, compare, verify, inspect, bench, export",
    EARLY_EXIT: "`mobileicsa run DIR --input FILE.npz`, or one of verify, inspect, bench, export, report",
}


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Hash every file below `folder` and write the manifest beside them. `facts` are JSON values kept with it."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != layout.MANIFEST and name not in MUTABLE:
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = {"format": ARTIFACT_FORMAT, "files": files, **facts}
    write_json(folder / layout.MANIFEST, {**manifest, "checksum": _checksum(manifest)})


def _checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest without this field: tells damage, not forgery."""
    return sha256_bytes(dump_json({name: value for name, value in manifest.items() if name != "checksum"}))


def read_manifest(folder: Path, kind: str = DECODER) -> dict[str, Any]:
    """The manifest of an artifact folder of that kind; InputError where the folder is none, or too new."""
    path = folder / layout.MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder}: no {layout.MANIFEST}, so this is not a finished artifact",
            hint="make one with `mobileicsa quantize`, or finish an interrupted run with --resume",
        )
    try:
        manifest = read_json(path, max_bytes=layout.MAX_JSON_BYTES)
    except InputError as error:
        raise VerificationError(f"{error.message} (the manifest is damaged)", hint=error.hint) from error
    _check_format(path, manifest)
    for field in ("files", "targets"):
        if not isinstance(manifest.get(field), dict):
            raise VerificationError(f"{path}: field {field} is missing or malformed")
    default = manifest.get("default_target")
    target = manifest["targets"].get(default) if isinstance(default, str) else None
    if not isinstance(target, dict) or not isinstance(target.get("backends"), list):
        raise VerificationError(f"{path}: field default_target or its target is missing or malformed")
    found = manifest.get("kind", DECODER)
    if found != kind:
        raise InputError(
            f"{folder}: is an artifact of kind {found}, this needs one of kind {kind}", hint=HINTS.get(str(found))
        )
    for name in REQUIRED[kind]:
        if name not in manifest["files"]:
            raise VerificationError(f"{path}: field files does not list {name}")
    return manifest


def kind_of(folder: Path) -> str:
    """What kind of artifact a folder says it is; one that says nothing readable is read as a decoder's, and refused
    there with the reason."""
    path = folder / layout.MANIFEST
    try:
        return str(read_json(path, max_bytes=layout.MAX_JSON_BYTES).get("kind", DECODER)) if path.is_file() else DECODER
    except InputError:
        return DECODER


def _check_format(path: Path, manifest: dict[str, Any]) -> None:
    version = manifest.get("format")
    if type(version) is not int or version < OLDEST_FORMAT:
        raise VerificationError(f"{path}: field format is {version!r}, expected {OLDEST_FORMAT} to {ARTIFACT_FORMAT}")
    if version > OLDEST_FORMAT and manifest.get("checksum") != _checksum(manifest):
        raise VerificationError(
            f"{path}: is damaged, its own checksum does not fit", hint="copy the artifact again or make it anew"
        )
    if version > ARTIFACT_FORMAT:
        raise InputError(
            f"{path}: artifact format {version}, this version reads up to {ARTIFACT_FORMAT}",
            hint=f"it needs mobileicsa >= {str(manifest.get('mobileicsa_version'))[:40]}",
        )


def check_files(folder: Path, manifest: dict[str, Any], *, only: str = "") -> list[str]:
    """Problems of the files named in the manifest (those starting with `only`): missing, resized, changed."""
    problems = []
    for name, expected in manifest["files"].items():
        if not name.startswith(only):
            continue
        try:
            path = inside(folder, name)
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                problems.append(f"{name}: missing")
            elif size != expected["bytes"]:
                problems.append(f"{name}: {size} bytes, the manifest says {expected['bytes']}")
            elif sha256_file(path) != expected["sha256"]:
                problems.append(f"{name}: content differs from the manifest's SHA-256")
        except InputError as error:
            problems.append(f"{name}: {error.message}")
        except (KeyError, TypeError):
            problems.append(f"{name}: malformed manifest entry")
    return problems


def require_files(folder: Path, manifest: dict[str, Any], only: str) -> None:
    """VerificationError naming the first damaged file below `only`."""
    problems = check_files(folder, manifest, only=only)
    if not any(name.startswith(only) for name in manifest["files"]):
        problems = [f"{only}: not listed in {layout.MANIFEST}"]
    if problems:
        raise VerificationError(
            f"{folder}: {problems[0]}", hint="the artifact is damaged: copy it again or make it anew"
        )
