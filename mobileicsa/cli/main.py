"""The `mobileicsa` command: finds the sub-command, prints its answer, turns every failure into one message."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from mobileicsa.cli import bench, doctor, evaluate, export, inspect, listings, quantize, recipes, report, run, verify
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.failure import PIPE_CLOSED, Terminated, failure_of
from mobileicsa.cli.screen import Screen

DEBUG = "--debug"


def main() -> None:
    raise SystemExit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    options = _before_separator(arguments)
    screen = Screen(json="--json" in options, debug=DEBUG in options)
    try:
        with _sigterm_raises():
            code = build_app()(
                args=_without_debug(arguments), prog_name="mobileicsa", standalone_mode=False, obj=screen
            )
        return int(code or 0)
    except BrokenPipeError:
        screen.streams.abandon_output()
        return PIPE_CLOSED
    except typer.Abort:
        return _fail(screen, KeyboardInterrupt())
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return _fail(screen, error)
    finally:
        screen.streams.close()


def build_app() -> typer.Typer:
    app = typer.Typer(
        help="Quantise a language model and write verified integer artifacts (.onnx, .pte) for phones and NPUs.",
        epilog="Start with: mobileicsa quantize --model smollm2-135m --scheme w8a8 --output out",
        no_args_is_help=True,
        add_completion=False,
        # The plain formatter: importing the rich one takes longer than everything else that --help needs.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in (
        quantize.quantize,
        export.export,
        run.run,
        evaluate.evaluate,
        bench.bench,
        verify.verify,
        inspect.inspect,
        report.report,
        doctor.doctor,
        listings.schemes,
        listings.targets,
    ):
        app.command(_verb(command), epilog=_examples(command))(answering(command))
    shelf = typer.Typer(help="List, show and copy the bundled recipes.", no_args_is_help=True, rich_markup_mode=None)
    for verb in (recipes.ls, recipes.show, recipes.cp):
        shelf.command(verb.__name__)(answering(verb))
    app.add_typer(shelf, name="recipes")
    return app


def _examples(command: Callable[..., Any]) -> str | None:
    examples = getattr(sys.modules[command.__module__], "EXAMPLES", None)
    return None if examples is None else "Examples:\n\b" + examples


def _verb(command: Callable[..., Any]) -> str:
    return "eval" if command.__name__ == "evaluate" else command.__name__


def answering(command: Callable[..., Answer]) -> Callable[..., int]:
    """The command, with its answer printed and its exit code returned."""

    @functools.wraps(command)
    def wrapped(context: typer.Context, *args: Any, **kwargs: Any) -> int:
        screen: Screen = context.obj
        with screen.working():
            answer = command(context, *args, **kwargs)
        screen.emit(answer)
        return answer.exit_code

    return wrapped


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        sys.stdout.write(f"mobileicsa {installed('mobileicsa')}\n")
        raise typer.Exit


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


def _without_debug(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if argument != DEBUG]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
