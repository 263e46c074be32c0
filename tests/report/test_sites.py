"""Edges of report.json, whose keys are sorted as text, come back in the model's own order."""

from __future__ import annotations

from mobileicsa.report.sites import layer_sites


def test_sites_follow_the_data_and_layers_ascend_as_numbers() -> None:
    names = ("out", "attn.scores", "mlp.product", "attn_norm.out")
    edges = {f"layers.{i}.{name}": {"role": "x", "bits": 8, "at": i} for i in range(12) for name in names}
    sites = layer_sites(dict(sorted(edges.items())))
    assert [site.name for site in sites] == ["attn_norm.out", "attn.scores", "mlp.product", "out"]
    assert all(site.layers == list(range(12)) == [edge["at"] for edge in site.edges] for site in sites)


def test_a_site_of_two_widths_is_two_sites() -> None:
    edges = {f"layers.{i}.mlp.product": {"role": "down_in", "bits": 16 if i else 8} for i in range(3)}
    assert [(site.bits, site.layers) for site in layer_sites(edges)] == [(8, [0]), (16, [1, 2])]
