"""What tables on the console say."""

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
