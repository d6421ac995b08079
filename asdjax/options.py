"""What a user can tell the stages beside system, recordings and folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What `run`, `train` and `embed` of `asdjax.pipeline` can be told.

    Args:
      year: the edition whose rules apply; None takes it from the data.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
      skip_bad: leave broken files out (listed in the results) instead of stopping.
      force: train and embed again what an earlier call did.
      reported: parameter counts of the system's report, to be printed beside ours.
      reuse: folders of other runs, whose training or embeddings are taken where they are exactly
        those that this run needs.
      pseudo_labels: a csv of `asdjax.pseudo`: labels of training clips without attributes.
    """

    year: int | None = None
    ground_truth: Path | None = None
    skip_bad: bool = False
    force: bool = False
    reported: str = ""
    reuse: tuple[Path, ...] = ()
    pseudo_labels: Path | None = None
