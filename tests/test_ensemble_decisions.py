"""Decisions of an ensemble: about a tenth of what is normal lies above the threshold."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scored_runs import SYSTEM, finish

from asdjax.metrics import score_files
from asdjax.scoring.combine import Ensemble
from asdjax.stages import folder
from asdjax.stages.ensemble import ensemble
from asdjax.types import Clip, Scores

COUNT = 300
CLIPS = tuple(
    Clip(Path("fan") / split / f"{i}.wav", "fan", "section_00", split, domain, i // 2 % 2)
    for split in ("train", "test")
    for i, domain in enumerate(("source", "target") * (COUNT // 2))
)
GROUP = "fan", "section_00"
SCALES = 1.0, 8.0, 0.25  # of the members
SETTINGS = [
    {"normalize": "rank"},
    {"combine": "minimum"},
    {"normalize": "rank", "combine": "minimum"},
    {"normalize": "zscore"},
]


def draw() -> list[np.ndarray]:
    """Return what distances look like, in multiples of 1/1024 so that a shift is exact."""
    rng = np.random.default_rng(0)
    values = [scale * (0.5 + rng.gamma(3.0, 1.0, COUNT)) for scale in SCALES]
    return [np.round(1024 * x) / 1024 for x in values]


def decided(root: Path, normal, tested, **settings) -> np.ndarray:
    """Return the decisions `[n]` of an ensemble by scores of each member's training and test clips.

    Where both are the same, the decisions tell how many training clips are above the threshold.
    """
    members = []
    for i, (left_out, values) in enumerate(zip(normal, tested, strict=True)):
        out = root / str(i)
        made = folder.Run(SYSTEM, out, CLIPS, 2024, ("",), {}, {})
        folder.save(out, made)
        train, test = (made.select(GROUP, split) for split in ("train", "test"))
        names = tuple(clip.name for clip in test)
        score_files.save(out / folder.SCORES, Scores(*GROUP, names, values))
        folder.save_left_out(out / folder.SCORES, train, left_out)
        finish(out)
        members.append(out)
    ensemble(members, Ensemble(**settings), root / "out")
    (found,) = score_files.load(root / "out" / "scores")
    by_name = dict(zip(found.names, found.decisions, strict=True))
    return np.array([by_name[name] for name in names])


def combined(scores: list[np.ndarray], normalize="zscore", combine="sum") -> np.ndarray:
    scaled = {
        "zscore": [stats.zscore(x) for x in scores],
        "rank": [(stats.rankdata(x) - 0.5) / len(x) for x in scores],
    }[normalize]
    return np.min(scaled, 0) if combine == "minimum" else np.mean(scaled, 0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_tenth_of_what_is_normal_lies_above_the_threshold(tmp_path, settings):
    scores = draw()
    values = combined(scores, **settings)
    decisions = decided(tmp_path, scores, scores, **settings)
    assert values[decisions == 1].min() > values[decisions == 0].max()
    # 0.04: a gamma distribution has three parameters, and ranks are none; 0.017 is the binomial
    # deviation of a share of 300 clips.
    assert decisions.mean() == pytest.approx(0.1, abs=0.04)


def test_the_threshold_of_a_minimum_is_a_percentile_of_a_gamma_distribution(tmp_path):
    """Few systems agree on what is normal: most minima of z-scores lie below 0."""
    scores = draw()
    values = combined(scores, combine="minimum")
    assert values.mean() < -0.3
    shape, location, scale = stats.gamma.fit(values - values.min() + 1)
    limit = stats.gamma.ppf(0.9, shape, location, scale) + values.min() - 1
    grid = np.linspace(-0.3, 0.3, COUNT)  # z-scores of the test clips by every member
    tested = [x.mean() + x.std() * grid for x in scores]
    got = decided(tmp_path, scores, tested, combine="minimum").sum()
    # One clip: a fit of values on another scale ends elsewhere within its tolerance.
    assert abs(got - (grid > limit).sum()) <= 1
    assert abs(got - (grid > np.quantile(values, 0.9)).sum()) > 3  # what stands in for a bad fit


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_shift_of_all_scores_changes_no_decision(tmp_path, settings):
    scores = draw()
    shifted = [values + shift for values, shift in zip(scores, (4, -16, 32), strict=True)]
    before = decided(tmp_path / "before", scores, scores, **settings)
    after = decided(tmp_path / "after", shifted, shifted, **settings)
    np.testing.assert_array_equal(after, before)
