"""`mobileicsa run`: complete a prompt, or chat, on any back end of an artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT
from mobileicsa.cli import exits
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.kinds import for_artifact, refuse
from mobileicsa.cli.options import AdapterOption, ArtifactFolder, JsonFlag, TargetOption, ThreadsOption
from mobileicsa.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from mobileicsa.artifact.model import FloatModel, QuantizedModel

EXAMPLES = """
  mobileicsa run out --prompt "The capital of France is"
  mobileicsa run out --backend executorch --prompt "Once" --max-new-tokens 64
  mobileicsa run out --backend qnn-htp --prompt "Once" --max-new-tokens 4
  mobileicsa run out --chat
  mobileicsa run out --adapter news --prompt "Today"
  mobileicsa run out --backend onnx --prompt "Hello" --json
  mobileicsa run exits --input images.npz --threshold 0.8
"""


def run(
    context: typer.Context,
    folder: ArtifactFolder,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="onnx, executorch or another of `mobileicsa targets`, for which the artifact is lowered first if it "
            "was not exported for it; simulator (the default, slow but exact).",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Text to continue.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", metavar="X", min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of sampling, with --temperature above 0.")
    ] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Use the model's chat form; without --prompt ask again and again.")
    ] = False,
    adapter: AdapterOption = None,
    inputs: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Early exits: .npz of inputs (and labels).")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="X", help="Early exits: stop at the first that is as sure, 0 to 1."),
    ] = None,
    mac_budget: Annotated[
        float | None,
        typer.Option("--mac-budget", metavar="N", help="Early exits: multiply-accumulates an input, on average."),
    ] = None,
    target: TargetOption = None,
    threads: ThreadsOption = None,
    as_json: JsonFlag = False,
) -> Answer:
    """Generate text from an artifact.

    On a runtime that a phone would use, on the emulator of an NPU, or on the simulator.
    """
    opening = {"backend": backend, "target": target, "threads": threads}
    generating: dict[str, Any] = {
        "prompt": prompt,
        "chat": chat,
        "adapter": adapter,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    deciding = {"inputs": inputs, "threshold": threshold, "mac_budget": mac_budget}
    return for_artifact(HANDLERS, folder)(context.obj, folder, opening, generating, deciding)


def _run_decoder(
    screen: Any, folder: Path, opening: dict[str, Any], generating: dict[str, Any], deciding: dict[str, Any]
) -> Answer:
    refuse(deciding, DECODER)
    prompt, adapter, chat = (generating.pop(name) for name in ("prompt", "adapter", "chat"))
    if prompt is None and (not chat or screen.json):
        raise UsageError("Missing option '--prompt'", hint="give a text to continue, or talk to the model with --chat")
    from mobileicsa.artifact.lowered import open_for
    from mobileicsa.program.backend import emulator_of

    backend = opening["backend"]
    emulator = None if backend is None else emulator_of(backend)
    if emulator is not None:
        screen.note(f"{backend} is emulated on this machine: {emulator}")
    with screen.progress() as progress:
        tick = progress.step(f"open {folder}", 1)
        model = open_for(str(folder), progress=progress, **opening, adapter=adapter)
        tick()
    options = {**generating, "chat": chat}
    if prompt is None:
        return _talk(screen, model, options)
    return _complete(screen, model, prompt, adapter, options)


HANDLERS = {DECODER: _run_decoder, EARLY_EXIT: exits.run}


def _complete(
    screen: Any, model: QuantizedModel | FloatModel, prompt: str, adapter: str | None, options: dict[str, Any]
) -> Answer:
    stream = None if screen.json else _streamed(screen.out)
    made = asdict(model.generate(prompt, on_text=stream, **options))
    document = {"backend": model.backend, "adapter": adapter, "prompt": prompt, **made}
    return Answer(document=document, show=lambda console: console.print(f"\n\n{_speeds(made)}", style="dim"))


def _talk(screen: Any, model: QuantizedModel | FloatModel, options: dict[str, Any]) -> Answer:
    """A conversation; it ends at an empty line or the end of input."""
    screen.note(f"talking to {model.name} on {model.backend}; an empty line ends")
    messages: list[dict[str, str]] = []
    while question := _ask(screen):
        messages.append({"role": "user", "content": question})
        made = asdict(model.generate(_fitting(screen, model, messages), on_text=_streamed(screen.out), **options))
        messages.append({"role": "assistant", "content": made["text"]})
        screen.out.print(f"\n{_speeds(made)}\n", style="dim")
    return Answer(document={"backend": model.backend, "messages": messages}, show=lambda console: None)


def _fitting(screen: Any, model: QuantizedModel | FloatModel, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of the conversation; the oldest question and answer are forgotten while it fills the context."""
    ids = model.tokenizer.encode(model.tokenizer.chat(messages))
    while len(ids) > model.max_window // 2 and len(messages) > 2:
        del messages[:2]
        screen.note("(the conversation is long: its oldest question and answer are forgotten)")
        ids = model.tokenizer.encode(model.tokenizer.chat(messages))
    return ids


def _ask(screen: Any) -> str:
    screen.err.print("> ", end="", style="bold")
    try:
        return input().strip()
    except EOFError:
        return ""


def _streamed(console: Console) -> Any:
    def show(text: str) -> None:
        console.out(text, end="", highlight=False)
        console.file.flush()

    return show


def _speeds(made: dict[str, Any]) -> str:
    parts = [f"{len(made['token_ids'])} tokens", f"first after {made['first_token_ms']:.0f} ms"]
    for name in ("prefill", "decode"):
        speed = made[f"{name}_tokens_per_s"]
        if speed is not None:
            parts.append(f"{name} {speed:.1f} tokens/s")
    return ", ".join(parts)
