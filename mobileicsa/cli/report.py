"""`mobileicsa report`: the report page of an artifact, written again from report.json."""

from __future__ import annotations

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import ArtifactFolder, JsonFlag

EXAMPLES = """
  mobileicsa report out
"""


def report(context: typer.Context, folder: ArtifactFolder, as_json: JsonFlag = False) -> Answer:
    """Write report.html again from report.json.

    For a report.json that was edited, or a page by a newer version.
    """
    from mobileicsa.artifact import layout
    from mobileicsa.artifact.manifest import kind_of, read_manifest
    from mobileicsa.report.record import write_page

    read_manifest(folder, kind_of(folder))
    write_page(folder)
    path = str(folder / layout.REPORT_PAGE)
    return Answer(document={"report": path}, show=lambda console: console.print(f"wrote {path}", markup=False))
