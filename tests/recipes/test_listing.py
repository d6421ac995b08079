"""What `asdjax recipes` prints."""

import pytest

from asdjax.config import EnsembleConfig
from asdjax.recipes import MODULES, RECIPES, listing, published
from asdjax.types import InputError


def test_the_overview_has_a_line_for_each_recipe_under_its_report():
    lines = listing.overview().splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line for line in lines if line.startswith("  ") and "/" in line}
    assert list(rows) == list(RECIPES)
    for name, recipe in RECIPES.items():
        assert rows[name].endswith(f"  {recipe.summary}")
    for module in MODULES:
        heading = next(i for i, line in enumerate(lines) if line.startswith(module.REPORT))
        assert lines[heading + 1].split()[0] == next(iter(module.RECIPES))


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("frozen/logmel", ["54.16", "71.0"]),
        ("small/dual", ["-", "75.4"]),
        ("aithu2024/system4", ["67.82", "-"]),
        ("midea2024/submission1", ["63.27", "-"]),
        ("aithu2024/beats-lora-flat", ["-", "-"]),
    ],
)
def test_a_line_has_the_published_and_the_measured_score(name, cells):
    line = next(line for line in listing.overview(name).splitlines() if f"  {name} " in line)
    assert line.split()[1:3] == cells


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_published_scores_of_a_report_are_of_the_same_data(module):
    shown = [next(iter(published.tables(name)), None) for name in module.RECIPES]
    assert len(set(shown) - {None}) <= 1


def test_a_text_filters_by_name_and_summary_in_any_case():
    def listed(text):
        lines = listing.overview(text).splitlines()
        return [line.split()[0] for line in lines if line.startswith("  ") and "/" in line]

    assert listed("MIDEA2024") == [name for name in RECIPES if name.startswith("midea2024/")]
    assert "aithu2024/dual" in listed("lora")  # in its summary
    assert "aithu2024/beats-full" not in listed("lora")


def test_a_text_that_is_nowhere_is_refused_with_close_names():
    with pytest.raises(InputError, match=r"'midea2024/submision3' .*midea2024/submission3"):
        listing.overview("midea2024/submision3")
    with pytest.raises(InputError, match="`asdjax recipes` lists all"):
        listing.overview("@@@")


@pytest.mark.parametrize("name", RECIPES)
def test_details_have_command_source_prose_and_every_published_value(name):
    recipe, text = RECIPES[name], listing.details(name)
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    assert f"asdjax run {name} --data DIR --out RUN" in words
    for said in (recipe.summary, recipe.source, recipe.stated, recipe.chosen, recipe.parameters):
        assert said in words
    cells = words.split()
    for data, table in published.tables(name).items():
        assert data in text
        values = [value for row in table.values() for value in row.values()]
        assert {f"{value:.2f}" for value in values} <= set(cells)
        assert set(published.machines(table)) <= set(cells)


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].like])
def test_details_repeat_what_holds_of_the_recipe_it_is_like(name):
    recipe, words = RECIPES[name], " ".join(listing.details(name).split())
    other = RECIPES[recipe.like]
    assert f"As {recipe.like}: {other.chosen or other.stated}" in words
    assert type(recipe.config) is type(other.config)


def test_details_name_weights_and_members():
    assert listing.details("frozen/logmel").count("weights") == 0
    text = listing.details("aithu2024/system2")
    assert "--weights beats-iter3 eat-base" in text
    assert "asdjax weights fetch eat-base" in text
    assert isinstance(RECIPES["aithu2024/system2"].config, EnsembleConfig)
    assert "0.50 aithu2024/beats-lora" in text


def test_details_say_where_a_total_is_not_printed_or_not_that_of_its_machines():
    assert "63.27  (not printed" in listing.details("midea2024/submission1")
    assert "64.46  (as printed; the machines give 64.31)" in listing.details("xju2025/beats-fft")
