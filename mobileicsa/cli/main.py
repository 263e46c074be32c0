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
            code = build_app()(args=_without_debug(arguments), prog_name="mobileicsa", standalone_mode=False, obj=screen)
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
        app.command(_verb(command), epilog=command.__doc__ and None)(answering(command))
    return app


def _verb(command: Callable[..., Any]) -> str:
    return "eval" if command.__name__ == "evaluate" else command.__name__
