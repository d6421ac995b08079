"""What the stages print: notes and progress on standard error, tables on standard output."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from asdjax.data.dcase import Summary
from asdjax.metrics.bootstrap import Comparison
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
    start = time.monotonic()
    with _bar(action, total, f"0.0 {unit}/s", visible=visible) as bar:
        task = bar.tasks[0]

        def advance(count: int = 1) -> None:
            rate = (task.completed + count) / max(time.monotonic() - start, 1e-3)
            bar.update(task.id, advance=count, text=f"{rate:.1f} {unit}/s")

        yield advance


@contextlib.contextmanager
def training_progress(
    total: int, done: int, visible: bool = True
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show steps, loss, accuracy, clips/s, waiting share, time left; yields `show(step, values)`.

    Args:
      total, done: steps of the run, and those an earlier call has done.
    """
    with _bar("training", total, "compiling", done, visible) as bar:

        def show(step: int, values: Mapping[str, float]) -> None:
            text = f"loss {values['loss']:.3f}, accuracy {values['accuracy']:.0%}"
            if "waiting" in values:
                rate, waiting = values["clips_per_second"], values["waiting"]
                text += f", {rate:.1f} clips/s, {waiting:.1%} waiting"
            bar.update(bar.task_ids[0], completed=step, text=text)

        yield show


def _bar(action: str, total: int, text: str, done: int = 0, visible: bool = True):
    """Return rich's progress bar of one task, which shows its field `text`."""
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.TextColumn(action),
        rich.BarColumn(bar_width=20),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[text]}"),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True, width=None if sys.stderr.isatty() else 120),
        disable=not visible,
    )
    bar.add_task(action, total=total, completed=done, text=text)
    return bar


def training_table(
    rows: Sequence[tuple[str, str, int, int]], counts: tuple[int, int], reported: str
) -> None:
    """Print the parameters that are trained, and how many there are beside those of the report.

    Args:
      rows: name, shape, count and layers of each, as `models.lora.summary` gives them.
      counts: parameters of the whole system, and those that are trained.
      reported: the same two of the report, as it prints them; "" where it does not.
    """
    cells = [[name, shape, f"{count:,}", layers] for name, shape, count, layers in rows]
    table(["trained", "shape", "parameters", "layers"], cells)
    total, trained = (f"{count / 1e6:.2f}M" for count in counts)
    beside = f" (the report: {reported})" if reported else ""
    note(f"{total} parameters, {trained} trained{beside}")


def verdicts_table(rows: Sequence[tuple[str, str, float, float | None, str]]) -> None:
    """Print file, machine, score, threshold (None: there is none) and most similar clip of each."""
    cells = []
    for file, machine, score, threshold, nearest in rows:
        limit, word = "", ""
        if threshold is not None:
            limit, word = f"{threshold:.4g}", "above" if score > threshold else ""
        cells.append([file, machine, f"{score:.4g}", limit, word, nearest])
    table(["file", "machine", "score", "threshold", "", "most similar normal clip"], cells)
    known = [(score, threshold) for _, _, score, threshold, _ in rows if threshold is not None]
    above = sum(score > threshold for score, threshold in known)
    note(f"{above} of {len(rows)} above the threshold")


def results_table(metrics: Sequence[Metric], title: str) -> None:
    """Print the official numbers: a row per section, then the totals."""
    values = {(m.machine, m.metric): m.value for m in metrics}
    names = [name for name in COLUMNS if any(m.metric == name for m in metrics)]
    machines = [m for m in dict.fromkeys(m.machine for m in metrics) if (m, names[0]) in values]
    rows = [[m, *(_percent(values.get((m, name))) for name in names)] for m in machines]
    table(["", *(COLUMNS[name] for name in names)], rows, title)
    if (TOTAL, "official_score") in values:
        interval = values.get((TOTAL, "official_score_ci95"))
        width = "" if interval is None else f" (evaluator's ci95, too narrow: {_percent(interval)})"
        print(f"official score {_percent(values[TOTAL, 'official_score'])}{width}")
    elif (TOTAL, "amean_auc") in values:
        auc, pauc = (_percent(values[TOTAL, f"amean_{name}"]) for name in ("auc", "pauc"))
        print(f"mean AUC {auc}, mean pAUC {pauc} (no domains: no official score)")


def comparison_table(systems: Mapping[str, Sequence[Metric]], title: str) -> None:
    """Print AUC source and target of each machine by several systems, and their official scores."""
    names = ("auc_source", "auc_target")
    found = [{(m.machine, m.metric): m.value for m in metrics} for metrics in systems.values()]
    machines = [machine for machine, metric in found[0] if metric == "auc_source"]
    heading = [f"{system} {COLUMNS[name]}" for system in systems for name in names]
    rows = [[m, *(_percent(v[m, name]) for v in found for name in names)] for m in machines]
    table(["", *heading], rows, title)
    for name, values in zip(systems, found, strict=True):
        print(f"{name}: official score {_percent(values[TOTAL, 'official_score'])}")


def differences_table(rows: Sequence[Comparison], title: str) -> None:
    """Print the official score of systems, a row per machine, with intervals.

    Of the first system the interval is that of its score, of others that of the difference.
    """
    systems = list(dict.fromkeys(row.system for row in rows))
    cells: dict[str, list[str]] = {}
    for row in rows:
        ends = (row.low, row.high) if row.system == systems[0] else (row.more_low, row.more_high)
        more = "" if row.system == systems[0] else f"{100 * row.more:+.2f} "
        text = f"{_percent(row.score)}\n{more}[{', '.join(f'{100 * end:.1f}' for end in ends)}]"
        cells.setdefault(row.machine, []).append(text)
    used = {row.system: f"\n({row.used} of test clips used)" if row.used else "" for row in rows}
    heading = [name + used[name] for name in systems]
    table(["", *heading], [[machine, *texts] for machine, texts in cells.items()], title)
    print(
        f"official scores in per cent; below them 95 % intervals over clips: of {systems[0]} that "
        "of its score, of the others that of the difference from it"
    )


def data_table(rows: Sequence[Summary], title: str) -> None:
    """Print what a data set holds, a row per machine and section."""
    cells = [_data_row(row) for row in rows]
    table(list(cells[0]), [list(row.values()) for row in cells], title)


def _data_row(row: Summary) -> dict[str, object]:
    """Return the cells by heading."""
    domains = {"source": "source", "target": "target", None: ""}
    seconds = sorted({f"{s:.4g}" for s in row.seconds}, key=float) if row.seconds else ["-"]
    return {
        "": f"{row.machine} {row.section}",
        "train": _counts(row.train, domains),
        "test": _counts(row.test, domains),
        "labels": _counts(row.labels, {NORMAL: "normal", ANOMALY: "anomaly", None: "unknown"}),
        "supplemental": row.supplemental,
        "attributes": row.attributes,
        "seconds": " to ".join(seconds),
        "Hz": ", ".join(map(str, row.rates_hz)),
        "channels": ", ".join(map(str, row.channels)),
    }


def _counts(counts: Mapping[object, int], words: Mapping[object, str]) -> str:
    return ", ".join(f"{counts[key]} {word}".strip() for key, word in words.items() if counts[key])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
