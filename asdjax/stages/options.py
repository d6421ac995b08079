"""What a user can say to the stages beside system, recordings and folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from asdjax.types import Reported


@dataclass(frozen=True)
class Options:
    """Options of `run`, `train` and `embed`.

    Args:
      year: the edition whose rules apply; None takes it from the data.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
      skip_bad: leave broken files out (listed in the results) instead of stopping.
      force: do again what an earlier call finished, and replace what another run left.
      reuse: folders of other runs, whose trainings and embeddings are copied where they are exactly
        those needed here.
      pseudo_labels: labels.csv of `asdjax pseudo` or of another run: labels of training clips
        without attributes.
      keep_checkpoints: keep them when the training is finished.
      reported: what the system's report says of its training, told beside ours.
    """

    year: int | None = None
    ground_truth: Path | None = None
    skip_bad: bool = False
    force: bool = False
    reuse: tuple[Path, ...] = ()
    pseudo_labels: Path | None = None
    keep_checkpoints: bool = False
    reported: Reported = field(default_factory=Reported)
