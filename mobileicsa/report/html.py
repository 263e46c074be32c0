"""`report.html` and the model card of an artifact, written from its `report.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mobileicsa.artifact import layout
from mobileicsa.io.atomic import write_bytes
from mobileicsa.io.json_file import read_json
from mobileicsa.report.card import model_card
from mobileicsa.report.view import build_view

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "report.html.j2"


def write_report(folder: Path) -> None:
    """Write (again) the report page and the model card of an artifact folder from its report.json."""
    report = read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)
    write_bytes(folder / layout.REPORT_PAGE, render(report).encode())
    write_bytes(folder / layout.CARD, model_card(report).encode())


def page_template(name: str) -> Template:
    """A page's template; what it is given is escaped, and must all be there."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mobileicsa.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(report: dict[str, Any]) -> str:
    """The page: one file, no script, nothing loaded from elsewhere."""
    # Matplotlib takes a second to import, which only this page needs.
    from markupsafe import Markup

    from mobileicsa.report import figures
    from mobileicsa.report.comparison import comparison_view
    from mobileicsa.report.learning import learning_figure, learning_rows, stages_of
    from mobileicsa.report.positions import positions_figure, positions_view
    from mobileicsa.report.quality import quality_view

    stages = stages_of(report)
    drawings = {
        "ranges": figures.range_figure(report["edges"]),
        "sqnr": figures.sqnr_figure(report["edges"]),
        "smoothing": figures.smoothing_figure(report["smoothing"]),
        "learning": learning_figure(stages),
        "positions": positions_figure(report.get("by_position")),
        "prefix": figures.prefix_figure(report["prefix"]["trials"], report["prefix"]["ids"]),
    }
    return page_template(TEMPLATE).render(
        **build_view(report),
        quality=quality_view(report.get("quality"), prefixed=bool(report["prefix"]["ids"])),
        learning=learning_rows(stages),
        comparison=comparison_view(report.get("comparison")),
        positions=positions_view(report.get("by_position")),
        recipe_yaml=yaml.safe_dump(report["recipe"], sort_keys=False, width=96),
        figures={name: None if svg is None else Markup(svg) for name, svg in drawings.items()},
    )
