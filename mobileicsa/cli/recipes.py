"""`mobileicsa recipes ls | show | cp`: the bundled quantisation recipes, to look at and to change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import JsonFlag

LS_EXAMPLES = """
  mobileicsa recipes ls
"""
SHOW_EXAMPLES = """
  mobileicsa recipes show prefix
"""
CP_EXAMPLES = """
  mobileicsa recipes cp prefix r.yaml
  mobileicsa quantize --model ./m --scheme w8a8 --output out --recipe r.yaml
"""

RecipeName = Annotated[str, typer.Argument(metavar="NAME", help="See `mobileicsa recipes ls`.", show_default=False)]


def ls(context: typer.Context, as_json: JsonFlag = False) -> Answer:
    """List the bundled recipes."""
    from mobileicsa.cli.tables import show_table
    from mobileicsa.quantize.recipe import bundled_recipes, load_recipe

    found = [load_recipe(name) for name in bundled_recipes()]
    rows = [(recipe.name, recipe.description) for recipe in found]
    document = {"recipes": [{"name": recipe.name, "description": recipe.description} for recipe in found]}
    return Answer(document=document, show=lambda console: show_table(console, ("recipe", "does"), rows, left=2))


def show(context: typer.Context, name: RecipeName, as_json: JsonFlag = False) -> Answer:
    """Print a recipe with all its fields."""
    import yaml

    from mobileicsa.quantize.recipe import load_recipe

    document = load_recipe(name).model_dump(mode="json")
    text = yaml.safe_dump(document, sort_keys=False, width=76)
    return Answer(document=document, show=lambda console: console.out(text, end="", highlight=False))


def cp(
    context: typer.Context,
    name: RecipeName,
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not exist.", show_default=False)],
    as_json: JsonFlag = False,
) -> Answer:
    """Copy a recipe to a file of your own, to change it."""
    from mobileicsa.quantize.recipe import copy_recipe

    copy_recipe(name, destination)
    path = str(destination)
    return Answer(
        document={"recipe": name, "path": path}, show=lambda console: console.print(f"wrote {path}", markup=False)
    )
