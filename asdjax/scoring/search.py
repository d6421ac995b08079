"""Many ways to compare the same embeddings, scored at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import NamedTuple

import numpy as np

from asdjax.scoring import matching
from asdjax.scoring.density import Density
from asdjax.scoring.distances import Bank
from asdjax.scoring.domain_scale import DomainScale
from asdjax.scoring.folds import Machines
from asdjax.scoring.knn import Knn, bank, mixed, split
from asdjax.types import Embeddings

NEIGHBORS = 1, 2, 4, 8, 16
FORMS = "ratio", "difference"


class Views(NamedTuple):
    """What the vectors of a run hold side by side: poolings or layers, each in equal parts."""

    names: tuple[str, ...]
    parts: int = 1  # of each, such as bands


class Candidate(NamedTuple):
    """One way to score."""

    view: str
    scorer: Knn

    def __str__(self):
        """Return the options of `asdjax score RUN` that score so."""
        return " ".join(["knn", *_options(self.scorer)])


def _options(config: Knn | Density | DomainScale, prefix: str = "") -> Iterator[str]:
    """Yield the options that change the defaults of a configuration, a nested one at the end."""
    nested = []
    for one in fields(config):
        value, name = getattr(config, one.name), f"{prefix}{one.name.replace('_', '-')}"
        if is_dataclass(value):
            words = re.sub("(?<!^)(?=[A-Z])", "-", type(value).__name__).lower()
            nested = [f"{name}:{words}", *_options(value, f"{name}.")]
        elif value is True:
            yield f"--{name}"
        elif value != one.default:
            yield f"--{name} {value}"
    yield from nested


def normalizations() -> list[tuple[Density | DomainScale | None, str]]:
    """Return what distances can be normalized by, each with the references of its neighbors."""
    pooled = [
        Density(count, form=form, strength=strength)
        for count in NEIGHBORS
        for form in FORMS
        for strength in ("full", "variance")
    ]
    pooled.append(Density(16, decay=0.9))
    by_domain = [
        Density(*counts, form=form, scale=scale)
        for counts, scale in (((1, 1), "mean"), ((4, 4), "mean"), ((16, 9), "sum"))
        for form in FORMS
    ]
    domain = [(one, "domain") for one in (*by_domain, DomainScale())]
    return [(None, "pooled"), *((one, "pooled") for one in pooled), *domain]


def score_all(
    train: Machines, test: Machines, views: Views, advance: Callable[[int], object] = lambda _: None
) -> Iterator[tuple[Candidate, list[np.ndarray], list[np.ndarray]]]:
    """Yield candidates with their scores: of test clips, and of training clips left out.

    Each view is compared as a whole and, where it has parts, part by part with the mean and the
    maximum over them, each with every normalization.

    Args:
      train, test: as of `asdjax.scoring.score.score`.
      views: of the vectors.
      advance: called with how many more candidates are scored.
    """
    ways = normalizations()
    for number, view in enumerate(views.names):
        own = [_view(machines, number, len(views.names)) for machines in (train, test)]
        for parts in sorted({1, views.parts}):
            banks = list(map(_bank, *(split(machines, parts) for machines in own)))
            found = matching.scores(banks, [(way, of == "domain") for way, of in ways])
            mixes = ("mean", "max") if parts > 1 else ("mean",)
            for row, (way, references) in enumerate(ways):
                scores = [[one[row] for one in side] for side in found]
                for mix in mixes:
                    scorer = Knn(references=references, parts=parts, mix=mix, normalize=way)
                    yield Candidate(view, scorer), *(mixed(one, parts, mix) for one in scores)
            advance(len(ways) * len(mixes))


def count(views: Views) -> int:
    """Return how many candidates `score_all` yields."""
    return len(views.names) * len(normalizations()) * (3 if views.parts > 1 else 1)


def _view(machines: Machines, number: int, of: int) -> list[Embeddings]:
    return [replace(one, values=np.split(one.values, of, 1)[number]) for one in machines]


def _bank(train: Embeddings, test: Embeddings) -> Bank:
    return bank(train, test, train.values[:0])


def consistency(left_out: Sequence[np.ndarray], domains: Sequence[np.ndarray]) -> float:
    """Return how alike normal clips of source and target score, from 0 to 1; nan if none can say.

    With P the share of pairs of a target and a source training clip in which the target clip scores
    higher, left out, it is 1 - |2 P - 1|, the mean over machines with both domains.

    Args:
      left_out: scores of the training clips of each machine.
      domains: of these clips.
    """
    found = []
    for scores, domain in zip(left_out, domains, strict=True):
        target, source = (np.sort(scores[domain == one]) for one in ("target", "source"))
        if len(target) and len(source):
            below, upto = (np.searchsorted(source, target, side) for side in ("left", "right"))
            found.append(1 - abs((below + upto).mean() / len(source) - 1))  # ties count half
    return float(np.mean(found)) if found else float("nan")
