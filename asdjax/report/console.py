"""What the stages print: notes, progress, tables. Everything goes to standard error but tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from asdjax.data.inspect import Summary
from asdjax.metrics.official import TOTAL, Metric
from asdjax.types import ANOMALY, NORMAL

COLUMNS = {  # row name of the evaluator -> heading
    "auc": "AUC",
    "auc_source": "AUC source",
    "auc_target": "AUC target",
    "pauc": "pAUC",
    "pauc_source": "pAUC source",
    "pauc_target": "pAUC target",
    "f1_source": "F1 source",
    "f1_target": "F1 target",
}


def note(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)


def table(heading: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows; every column but the first is right-aligned."""
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title or None, title_justify="left")
    for column, name in enumerate(heading):
        view.add_column(name, justify="right" if column else "left", overflow="fold")
    for row in rows:
        view.add_row(*[str(cell) for cell in row])
    width = None if sys.stdout.isatty() else 160
    Console(width=width, markup=False, highlight=False).print(view)


@contextlib.contextmanager
def progress(
    action: str, total: int, unit: str = "clips", visible: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show count, rate and time left; the yielded function advances by its argument."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn(action),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]:.1f}} {unit}/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not visible,
    )
    with bar:
        task = bar.add_task(action, total=total, rate=0.0)

        def advance(count: int = 1) -> None:
            bar.advance(task, count)
            bar.update(task, rate=bar.tasks[0].speed or 0.0)

        yield advance


@contextlib.contextmanager
def training_progress(
    total: int, done: int, visible: bool = True
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show steps, loss, accuracy, clips/s, waiting share, time left; yields `show(step, values)`.

    Args:
      total, done: steps of the run, and those an earlier call has done.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("training"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True, width=None if sys.stderr.isatty() else 120),
        disable=not visible,
    )
    with bar:
        task = bar.add_task("training", total=total, completed=done, values="compiling")

        def show(step: int, values: Mapping[str, float]) -> None:
            text = f"loss {values['loss']:.3f}, accuracy {values['accuracy']:.0%}"
            if "waiting" in values:
                rate, waiting = values["clips_per_second"], values["waiting"]
                text += f", {rate:.1f} clips/s, {waiting:.1%} waiting"
            bar.update(task, completed=step, values=text)

        yield show


def training_table(
    rows: Sequence[tuple[str, str, int, int]], counts: tuple[int, int], reported: str
) -> None:
    """Print what trains: names, shape, numbers, layers; then all and trained numbers.

    Args:
      rows: as `models.lora.summary` gives them.
      counts: numbers of the whole system and those that train.
      reported: the same two of the report, as it prints them; "" where it does not.
    """
    cells = [[name, shape, f"{numbers:,}", str(layers)] for name, shape, numbers, layers in rows]
    table(["trains", "shape", "numbers", "layers"], cells)
    total, trained = (f"{count / 1e6:.2f}M" for count in counts)
    beside = f" (the report: {reported})" if reported else ""
    note(f"{total} parameters, {trained} train{beside}")


def results_table(metrics: Sequence[Metric], title: str) -> None:
    """Print the official numbers: a row per section, then the totals."""
    values = {(m.machine, m.metric): m.value for m in metrics}
    names = [name for name in COLUMNS if any(m.metric == name for m in metrics)]
    machines = [m for m in dict.fromkeys(m.machine for m in metrics) if (m, names[0]) in values]
    rows = [[m, *(_percent(values.get((m, name))) for name in names)] for m in machines]
    table(["", *(COLUMNS[name] for name in names)], rows, title)
    if (TOTAL, "official_score") in values:
        interval = values.get((TOTAL, "official_score_ci95"))
        width = "" if interval is None else f" (evaluator's ci95 {_percent(interval)}: too narrow)"
        print(f"official score {_percent(values[TOTAL, 'official_score'])}{width}")
    elif (TOTAL, "amean_auc") in values:
        auc, pauc = (_percent(values[TOTAL, f"amean_{name}"]) for name in ("auc", "pauc"))
        print(f"mean AUC {auc}, mean pAUC {pauc} (no domains: no official score)")


def comparison_table(systems: Mapping[str, Sequence[Metric]], title: str) -> None:
    """Print AUC source and target of each machine by several systems, and their official scores."""
    names = {"auc_source": "AUC source", "auc_target": "AUC target"}
    found = [{(m.machine, m.metric): m.value for m in metrics} for metrics in systems.values()]
    machines = [machine for machine, metric in found[0] if metric == "auc_source"]
    heading = [f"{name} {column}" for name in systems for column in names.values()]
    rows = [[m, *(_percent(v[m, name]) for v in found for name in names)] for m in machines]
    table(["", *heading], rows, title)
    for name, values in zip(systems, found, strict=True):
        print(f"{name}: official score {_percent(values[TOTAL, 'official_score'])}")


def data_table(rows: Sequence[Summary], title: str) -> None:
    """Print what a data set holds, a row per machine and section."""
    heading = [
        "",
        "train",
        "test",
        "labels",
        "supplemental",
        "attributes",
        "seconds",
        "Hz",
        "channels",
    ]
    table(heading, [_data_row(row) for row in rows], title)


def _data_row(row: Summary) -> list[str]:
    seconds = sorted({f"{s:.4g}" for s in row.seconds}, key=float) if row.seconds else ["-"]
    return [
        f"{row.machine} {row.section}",
        _counts(row.train, {"source": "source", "target": "target", None: ""}),
        _counts(row.test, {"source": "source", "target": "target", None: ""}),
        _counts(row.labels, {NORMAL: "normal", ANOMALY: "anomaly", None: "unknown"}),
        str(row.supplemental),
        str(row.attributes),
        " to ".join(seconds),
        ", ".join(map(str, row.rates_hz)),
        ", ".join(map(str, row.channels)),
    ]


def _counts(counts: Mapping[object, int], words: Mapping[object, str]) -> str:
    return ", ".join(f"{counts[key]} {word}".strip() for key, word in words.items() if counts[key])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
