"""`bench --device adb`: every contender in turn on a phone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.manifest import read_manifest, require_files
from mobileicsa.artifact.model import target_of
from mobileicsa.bench.contenders import (
    Contender,
    check_counts,
    floats,
    quantized,
    token_counts,
    top_level,
    weights,
)
from mobileicsa.bench.environment import environment
from mobileicsa.bench.estimate import macs_per_token
from mobileicsa.bench.phone.app import require_app
from mobileicsa.bench.phone.clock import Clock
from mobileicsa.bench.phone.model_files import METHOD_FILES, Package, package
from mobileicsa.bench.phone.phone import WORK, Phone
from mobileicsa.bench.phone.race import Race, rows_of, run_laps, worst_status
from mobileicsa.bench.phone.trace import Recording
from mobileicsa.core.errors import DeviceError, InputError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.io.json_file import read_json

if TYPE_CHECKING:
    from mobileicsa.quantize.steps import Progress


class Partial(DeviceError):
    """The phone failed after some turns; `result` holds what they measured, labelled as partial."""

    def __init__(self, error: DeviceError, result: dict[str, Any]) -> None:
        kept = f"{result['turns_kept']} finished turns are kept, labelled as partial"
        super().__init__(error.message, hint=f"{error.hint}; {kept}" if error.hint else kept)
        self.result = result


def bench_phone(
    folder: Path,
    *,
    serial: str | None,
    apps: Sequence[Path] = (),
    backends: Sequence[str] | None = None,
    baseline_float: bool = False,
    prompt_tokens: int | None = None,
    generate_tokens: int | None = None,
    repeat: int = 5,
    threads: int | None = None,
    keep: bool = False,
    float_cache: Path | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the artifact's back ends on a phone; the result has the host bench's keys.

    `apps` are installed first. Contenders take turns (A B A B), each turn in a fresh process after a warm-up inside it,
    once the phone is no warmer than at the start. Throttled turns are listed and left out of every median. Raises
    DeviceError, after some turns Partial. `keep` leaves the models on the phone for the app's chat screen.
    """
    manifest = read_manifest(folder)
    require_files(folder, manifest, layout.PLAN)
    plan = QuantPlan.from_json(read_json(folder / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES), layout.PLAN)
    target = target_of(manifest, None)
    prompt_tokens, generate_tokens = token_counts(plan, target, prompt_tokens, generate_tokens)
    check_counts(repeat, threads)
    chosen = _chosen(target.backends, backends)
    step = progress.step if progress else _no_step
    phone = Phone(serial, clock)
    for apk in apps:
        phone.install(apk)
    for name in chosen:
        require_app(phone, name)
    with tempfile.TemporaryDirectory(prefix="mobileicsa-phone-") as temporary, ExitStack() as after:
        scratch = Path(temporary)
        contenders = [quantized(folder, manifest, plan, target, name) for name in chosen]
        for contender in contenders:
            below = contender.folder.relative_to(folder).as_posix()
            require_files(folder, manifest, below + "/")
        if baseline_float:
            contenders += floats(folder, manifest, plan, target, chosen, float_cache or scratch, step)
        tensors = weights(folder, manifest)
        remotes = {}
        tick = step("push", len(contenders))
        for number, contender in enumerate(contenders):
            made = package(contender, folder, plan, target, tensors, scratch / f"model{number}")
            remotes[contender.name] = remote = f"{WORK}/{_key(folder, manifest, contender)}"
            if not keep:
                after.callback(_removing(phone, remote, list(made.files)))
            _push(phone, made, remote)
            tick()
        del tensors
        recording = after.enter_context(Recording(phone))
        race = Race({contender.name: [] for contender in contenders})
        common = {
            "device": f"adb:{phone.serial}",
            "phone": phone.properties,
            "target": target.name,
            "prompt_tokens": prompt_tokens,
            "generate_tokens": generate_tokens,
            "repeat": repeat,
            "threads": threads,
            "environment": {"cpu": _cpu(phone), "versions": environment()["versions"]},
        }

        def result(partial: DeviceError | None) -> dict[str, Any]:
            trace = recording.stop(scratch)
            rows = rows_of(contenders, race, trace, recording.refused, macs_per_token(plan, target), common)
            label = {} if partial is None else {"partial": partial.message}
            ordered = {name: rows[name] for name in chosen}
            return {
                **top_level(ordered, chosen[0]),
                **common,
                **label,
                "turns_kept": race.whole_turns(),
                "backends": ordered,
            }

        try:
            run_laps(phone, contenders, remotes, race, common, scratch, step)
        except DeviceError as error:
            if race.good_turns():
                raise Partial(error, result(error)) from error
            raise
        if not race.good_turns():
            raise DeviceError(
                f"{phone.serial}: throttled during every turn ({worst_status(race)})",
                hint="let it cool, take it out of its case, off the charger, or ask for fewer tokens",
            )
        return result(None)


def _chosen(offered: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The back ends to run: of the artifact's those that the app has, or the ones asked for."""
    unknown = sorted(set(wanted or ()) - set(offered))
    if unknown:
        raise InputError(f"--backend {unknown[0]}: not in this artifact; it has {', '.join(offered)}")
    chosen = [name for name in offered if name in (wanted or METHOD_FILES)]
    if not set(chosen) <= set(METHOD_FILES) or not chosen:
        raise InputError(
            f"nothing to run on a phone among the back ends {', '.join(chosen or offered)}",
            hint=f"the app runs {' and '.join(METHOD_FILES)}: export for a target that has one of them",
        )
    return chosen


def _key(folder: Path, manifest: dict[str, Any], contender: Contender) -> str:
    """A folder name of its own for each export, the same one each time."""
    digests = sorted(row["sha256"][:8] for name, row in manifest["files"].items() if name == layout.PLAN)
    return f"{''.join(digests)}-{contender.name.replace(' ', '-')}"


def _push(phone: Phone, made: Package, remote: str) -> None:
    phone.make_folder(remote, made.size_bytes)
    for name, path in sorted(made.files.items()):
        phone.push(path, f"{remote}/{name}")


def _removing(phone: Phone, remote: str, names: list[str]) -> Callable[[], None]:
    def remove() -> None:
        try:
            phone.remove(remote, names)
        except DeviceError:  # it is gone, and what was measured matters more
            return

    return remove


def _cpu(phone: Phone) -> str:
    facts = phone.properties
    chip = facts["chip"] or facts["board"]
    return (
        " ".join(word for word in (facts["manufacturer"], facts["model"], chip and f"({chip})") if word) or phone.serial
    )


def _no_step(title: str, total: int) -> Callable[[], None]:
    return lambda: None
