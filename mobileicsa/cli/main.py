"""The `mobileicsa` command: finds the sub-command, prints its answer, turns every failure into one message."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mobileicsa.cli import (
    bench,
    compare,
    doctor,
    evaluate,
    export,
    inspect,
    listings,
    methods,
    quantize,
    recipes,
    report,
    run,
    verify,
)
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.failure import PIPE_CLOSED, Terminated, failure_of
from mobileicsa.cli.screen import Screen
from mobileicsa.core.errors import EnvironmentFault, UsageError
from mobileicsa.io.machine import BASE_MEMORY_BYTES, START_MEMORY_BYTES, require_memory

JSON, DEBUG = "--json", "--debug"


def main() -> None:
    raise SystemExit(execute(sys.argv[1:]))


@dataclass(frozen=True)
class Verb:
    """A sub-command. `memory` bytes must be free before it starts: less, and PyTorch dies while it is imported."""

    name: str
    command: Callable[..., Answer]
    examples: str
    memory: int = 0


VERBS = (
    Verb("quantize", quantize.quantize, quantize.EXAMPLES, BASE_MEMORY_BYTES),
    Verb("export", export.export, export.EXAMPLES, BASE_MEMORY_BYTES),
    Verb("run", run.run, run.EXAMPLES, START_MEMORY_BYTES),
    Verb("eval", evaluate.evaluate, evaluate.EXAMPLES, START_MEMORY_BYTES),
    Verb("compare", compare.compare, compare.EXAMPLES, START_MEMORY_BYTES),
    Verb("bench", bench.bench, bench.EXAMPLES, START_MEMORY_BYTES),
    Verb("verify", verify.verify, verify.EXAMPLES, START_MEMORY_BYTES),
    Verb("inspect", inspect.inspect, inspect.EXAMPLES),
    Verb("report", report.report, report.EXAMPLES),
    Verb("doctor", doctor.doctor, doctor.EXAMPLES),
    Verb("schemes", listings.schemes, listings.SCHEMES_EXAMPLES),
    Verb("targets", listings.targets, listings.TARGETS_EXAMPLES),
)
RECIPE_VERBS = (
    Verb("ls", recipes.ls, recipes.LS_EXAMPLES),
    Verb("show", recipes.show, recipes.SHOW_EXAMPLES),
    Verb("cp", recipes.cp, recipes.CP_EXAMPLES),
)
METHOD_VERBS = (Verb("run", methods.run, methods.RUN_EXAMPLES, START_MEMORY_BYTES),)
METHOD_LIST = Verb("methods", methods.methods, methods.LIST_EXAMPLES)
START = "mobileicsa quantize --model smollm2-135m --scheme w8a8 --output out"


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    options = _before_separator(arguments)
    screen = Screen(json=JSON in options, debug=DEBUG in options)
    try:
        return _run(screen, arguments)
    except (BrokenPipeError, SystemExit):  # Typer makes the second of the first
        return PIPE_CLOSED
    except OSError as error:  # not even the failure could be written
        with suppress(OSError):
            screen.streams.err.write(f"error: standard output: {error.strerror}\n")
        return EnvironmentFault.exit_code
    finally:
        screen.streams.close()


def _run(screen: Screen, arguments: Sequence[str]) -> int:
    try:
        with _sigterm_raises():
            code = build_app()(
                args=_without_global_flags(arguments), prog_name="mobileicsa", standalone_mode=False, obj=screen
            )
        return int(code or 0)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return _fail(screen, error)


def build_app() -> typer.Typer:
    # The plain formatter: importing the rich one takes longer than everything else that --help needs.
    app = typer.Typer(
        help="Quantise a language model and write verified integer artifacts (.onnx, .pte) for phones and NPUs.",
        epilog=_examples(START),
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    shelf = typer.Typer(
        help="List, show and copy the bundled recipes.",
        epilog=_examples("mobileicsa recipes ls"),
        rich_markup_mode=None,
    )
    shelf.callback(invoke_without_command=True)(_recipes)
    research = typer.Typer(epilog=_examples(METHOD_LIST.examples), rich_markup_mode=None)
    research.callback(invoke_without_command=True)(_unless_further(answering(METHOD_LIST)))
    for group, verbs in ((app, VERBS), (shelf, RECIPE_VERBS), (research, METHOD_VERBS)):
        for verb in verbs:
            group.command(verb.name, epilog=_examples(verb.examples))(answering(verb))
    app.add_typer(shelf, name="recipes")
    app.add_typer(research, name="methods")
    return app


def _examples(lines: str) -> str:
    # \b keeps the formatter from joining the lines into a paragraph.
    indented = "\n".join(f"  {line.strip()}" for line in lines.strip().splitlines())
    return f"\b\nExamples:\n{indented}"


def answering(verb: Verb) -> Callable[..., int]:
    """The verb's command, with its answer or its failure printed and its exit code returned."""

    @functools.wraps(verb.command)
    def wrapped(context: typer.Context, *args: Any, **kwargs: Any) -> int:
        screen: Screen = context.obj
        try:
            with screen.working():
                require_memory(verb.memory)
                answer = verb.command(context, *args, **kwargs)
            screen.emit(answer)
            return answer.exit_code
        except BrokenPipeError:
            raise
        # Here and not around Typer, which keeps an interruption to itself.
        except (Exception, KeyboardInterrupt, Terminated) as error:
            return _fail(screen, error)

    return wrapped


def _unless_further(command: Callable[..., int]) -> Callable[..., int]:
    """A group that answers by itself where none of its commands is named."""

    @functools.wraps(command)
    def wrapped(context: typer.Context, *args: Any, **kwargs: Any) -> int:
        return command(context, *args, **kwargs) if context.invoked_subcommand is None else 0

    return wrapped


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="With any command: tracebacks, and what libraries print, on standard error.")
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        number = installed("mobileicsa")
        context.obj.emit(Answer(document={"version": number}, show=lambda out: out.print(f"mobileicsa {number}")))
        raise typer.Exit
    _needs_command(context)


def _recipes(context: typer.Context) -> None:
    _needs_command(context)


def _needs_command(context: typer.Context) -> None:
    """A group named without any of its commands: its help instead, and the exit code of wrong usage."""
    if context.invoked_subcommand is None:
        if context.obj.json:
            raise UsageError("Missing command", hint=f"see `{context.command_path} --help`")
        context.obj.note(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def _fail(screen: Screen, error: BaseException) -> int:
    failure = failure_of(error)
    if screen.debug:
        traceback.print_exception(error)
    screen.note(f"error: {failure.message}" + (f"\n  hint: {failure.hint}" if failure.hint else ""))
    if screen.json:
        screen.emit_json(failure.to_json())
    return failure.exit_code


def _before_separator(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: list(arguments).index("--")] if "--" in arguments else arguments


def _without_global_flags(arguments: Sequence[str]) -> list[str]:
    """--json and --debug may stand anywhere before `--`, before the command's name too."""
    flags = len(_before_separator(arguments))
    return [argument for i, argument in enumerate(arguments) if i >= flags or argument not in (JSON, DEBUG)]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
