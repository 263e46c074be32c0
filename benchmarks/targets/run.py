"""Which engine computes which operator as the simulator does.

    python -m benchmarks.targets.run

One operator between integer borders at a time, seeded inputs over its whole range. Engines that are not installed keep
the column of the last run.
"""

from __future__ import annotations

import argparse

from benchmarks.steps import RESULTS, read_result
from benchmarks.targets.engines import ENGINES, measure
from benchmarks.targets.operators import OPERATORS, OneOperator
from mobileicsa.bench.environment import environment
from mobileicsa.io.json_file import write_json

RESULT = RESULTS / "targets.json"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    before = (read_result(RESULT.stem) or {"operators": {}})["operators"]
    rows = {}
    for operator in OPERATORS:
        program = OneOperator(operator)
        found = {name: measure(program, name) for name in ENGINES}
        kept = before.get(operator.name, {})
        rows[operator.name] = {
            name: kept.get(name, result) if "absent" in result else result for name, result in found.items()
        }
        print(operator.name, rows[operator.name], flush=True)
    write_json(RESULT, {"operators": rows, "environment": environment()})


if __name__ == "__main__":
    main()
