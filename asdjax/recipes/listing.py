"""What `asdjax recipes` prints: plain text in lines of at most 100 columns."""

from __future__ import annotations

from difflib import get_close_matches
from textwrap import wrap

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.recipes import MODULES, RECIPES, published
from asdjax.types import InputError

COLUMNS = 100
ABOUT = (
    "Official scores in per cent: the harmonic mean of AUC source, AUC target and pAUC of all "
    "machines. Published: by the report, on the data in the heading. Measured: by us, on the "
    "synthetic machines of `asdjax quickstart`. All about one: `asdjax recipes NAME`."
)


def overview(text: str = "") -> str:
    """Return a line for each recipe with `text` in its name or summary, grouped by report.

    Raises:
      InputError: there is none.
    """
    found = [n for n, r in RECIPES.items() if text.lower() in f"{n} {r.summary}".lower()]
    if not found:
        close = get_close_matches(text.lower(), RECIPES, n=5, cutoff=0.4)
        hint = f"close names: {', '.join(close)}" if close else "`asdjax recipes` lists all"
        raise InputError(f"no recipe has {text!r} in its name or summary; {hint}")
    width = max(map(len, found))
    lines = [*wrap(ABOUT, COLUMNS), "", f"{'':{width}}   published measured"]
    for module in MODULES:
        names = [name for name in module.RECIPES if name in found]
        if names:
            data = next((data for name in names for data in published.tables(name)), "")
            lines += ["", f"{module.REPORT}; {data}" if data else module.REPORT]
            lines += [_line(name, width) for name in names]
    return "\n".join(lines)


def _line(name: str, width: int) -> str:
    recipe, tables = RECIPES[name], published.tables(name)
    theirs = f"{published.total(next(iter(tables.values()))):.2f}" if tables else "-"
    ours = "-" if recipe.measured is None else f"{recipe.measured:.1f}"
    return f"  {name:{width}} {theirs:>9} {ours:>8}  {recipe.summary}"


def details(name: str) -> str:
    """Return all about a recipe: commands, source, choices, published results per machine."""
    recipe, tables = RECIPES[name], published.tables(name)
    measured = "" if recipe.measured is None else f"official score {recipe.measured:.1f} per cent"
    sections = {
        "Run": _commands(name, recipe.config),
        "Members": _members(recipe.config),
        "Source": _paragraph(recipe.source),
        "What the source says": _prose(name, "stated"),
        "What we chose": _prose(name, "chosen"),
        "Parameters, all / trained, as the source counts them": _paragraph(recipe.parameters),
        "Measured on the synthetic machines of `asdjax quickstart`": _paragraph(measured),
        "Published: official score, per cent": [_total(*item) for item in tables.items()],
    }
    for data, table in tables.items():
        sections[f"Published: {data}, per cent"] = _rows(published.machines(table))
    lines = [name, *_paragraph(recipe.summary)]
    for heading, content in sections.items():
        lines += ["", heading, *content] if content else []
    return "\n".join(lines)


def _paragraph(text: str) -> list[str]:
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    return wrap(text, COLUMNS, **indent, break_on_hyphens=False)


def _commands(name: str, config: SystemConfig | EnsembleConfig) -> list[str]:
    members = config.members if isinstance(config, EnsembleConfig) else [name]
    every = [weights for member in members for weights in RECIPES[member].config.backbones]
    weights = list(dict.fromkeys(every))
    run = [
        "asdjax run",
        name,
        "--data DIR --out RUN",
        *(["--weights", *weights] if weights else []),
    ]
    line = f"  {' '.join(run)}"
    if len(line) > COLUMNS:  # the weights are the recipe's own
        line = f"  {' '.join(run[:3])}"
    return [*(f"  asdjax weights fetch {one}" for one in weights), line]


def _members(config: SystemConfig | EnsembleConfig) -> list[str]:
    if isinstance(config, SystemConfig):
        return []
    shares = config.ensemble.shares(len(config.members))
    lines = [f"  {x:.2f} {member}" for x, member in zip(shares, config.members, strict=True)]
    if config.ensemble.keep != "all":
        lines.append(f"  of these, the ones whose {config.ensemble.keep} is at least the mean")
    return lines


def _prose(name: str, field: str) -> list[str]:
    """Return what is said of a recipe, after what is said of those that it is like."""
    lineage = [name]
    while like := RECIPES[lineage[0]].like:
        lineage.insert(0, like)
    lines = []
    for one in lineage:
        heading = "" if len(lineage) == 1 else "Here: " if one == name else f"As {one}: "
        text = getattr(RECIPES[one], field)
        lines += _paragraph(heading + text) if text else []
    return lines


def _total(data: str, table: published.Table) -> str:
    total, mean = published.total(table), published.mean(table)
    note = ""
    if published.TOTAL not in table:
        note = "  (not printed: computed from the machines)"
    elif mean is not None and f"{mean:.2f}" != f"{total:.2f}":
        note = f"  (as printed; the machines give {mean:.2f})"
    return f"  {data:12}{total:.2f}{note}"


def _rows(machines: published.Table) -> list[str]:
    if not machines:
        return []
    names = dict(zip(published.AREAS, ("AUC source", "AUC target", "pAUC"), strict=True))
    names |= {published.MEAN: "harmonic mean"}
    shown = [m for m in names if any(m in values for values in machines.values())]
    lines = ["  machine".ljust(22) + "".join(f"{names[m]:>15}" for m in shown)]
    for machine, values in machines.items():
        lines.append(f"  {machine:20}" + "".join(f"{values[m]:15.2f}" for m in shown))
    return lines
