"""What tables and progress on the console say."""

from collections import Counter
from dataclasses import replace

from asdjax.data.dcase import Summary
from asdjax.metrics.official import TOTAL, Metric
from asdjax.report import console


def numbers(source, target, score):
    """Return the metrics of two machines: those given, and each number a hundredth more."""
    each = [("fan", 0.0), ("pump", 0.01)]
    aucs = [
        Metric(machine, name, value + more)
        for machine, more in each
        for name, value in (("auc_source", source), ("auc_target", target), ("pauc", 0.5))
    ]
    return [*aucs, Metric(TOTAL, "official_score", score)]


def test_systems_stand_side_by_side_with_their_official_scores(capsys):
    console.comparison_table({"a": numbers(0.9, 0.6, 0.7), "b": numbers(0.8, 0.7, 0.75)}, "made")
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    assert ["fan", "90.00", "60.00", "80.00", "70.00"] in rows
    assert ["pump", "91.00", "61.00", "81.00", "71.00"] in rows
    assert shown.index("a AUC source") < shown.index("b AUC source")
    assert "a: official score 70.00\nb: official score 75.00" in shown


def test_what_is_trained_stands_beside_the_report(capsys):
    console.training_table([("attn.q", "16x64", 12_288, 12)], (90_500_000, 12_288), "90.5M, 12k")
    shown = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.out.splitlines()]
    assert ["attn.q", "16x64", "12,288", "12"] in cells
    assert shown.err == "90.50M parameters, 0.01M trained (the report: 90.5M, 12k)\n"


def test_a_data_set_is_a_row_per_machine_and_section(capsys):
    row = Summary(
        *("fan", "section_00", Counter({"source": 9, "target": 1}), Counter({None: 4})),
        *(Counter({0: 3, None: 1}), 2, 5, (1.5, 10.0), (16_000, 44_100), (1,)),
    )
    console.data_table([row, replace(row, section="section_01", seconds=None)], "made")
    shown = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    counts = ["9 source, 1 target", "4", "3 normal, 1 unknown", "2", "5"]
    assert ["fan section_00", *counts, "1.5 to 10", "16000, 44100", "1"] in cells
    assert ["fan section_01", *counts, "-", "16000, 44100", "1"] in cells


def test_progress_shows_counts_and_values(capsys):
    with console.progress("reading", 4, "files") as advance:
        advance()
        advance(3)
    with console.training_progress(10, 4) as show:
        show(10, {"loss": 0.5, "accuracy": 0.75, "clips_per_second": 8.0, "waiting": 0.25})
    with console.progress("hidden", 4, visible=False) as advance:
        advance(4)
    first, second = capsys.readouterr().err.splitlines()
    assert "reading" in first
    assert "4/4" in first
    assert "files/s" in first
    assert "10/10 loss 0.500, accuracy 75%, 8.0 clips/s, 25.0% waiting" in second
