"""`mobileicsa-lm-eval`: the `lm_eval` command with the model class `mobileicsa` registered.

lm-eval up to 0.4.13 resolves --model before any other package's code runs, so it cannot find ours by itself.
"""

from __future__ import annotations

import sys

from mobileicsa.core.errors import EnvironmentFault

MODEL = "mobileicsa"
TARGET = "mobileicsa.evaluate.lm_eval_model:MobileicsaLM"


def register() -> None:
    """Make `model="mobileicsa"` known to lm_eval in this process."""
    try:
        import lm_eval.models  # noqa: F401  (first: lm_eval fills its registry only while that is empty)
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise EnvironmentFault(f"lm-eval: {error}", hint="pip install 'mobileicsa[eval]'") from error
    if MODEL not in model_registry:
        model_registry.register(MODEL, target=TARGET)


def main() -> None:
    try:
        register()
    except EnvironmentFault as fault:
        sys.stderr.write(f"error: {fault}\n")
        raise SystemExit(fault.exit_code) from fault
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
