"""Many ways to compare the same embeddings, scored at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import NamedTuple

import numpy as np

from asdjax.scoring import matching
from asdjax.scoring.density import Density
from asdjax.scoring.distances import Bank
from asdjax.scoring.domain_scale import DomainScale
from asdjax.scoring.folds import Machines
from asdjax.scoring.knn import Knn, bank, mixed, split, view
from asdjax.types import Embeddings

NEIGHBORS = 1, 2, 4, 8, 16
FORMS = "ratio", "difference"


class Views(NamedTuple):
    """What the vectors of a run hold side by side: poolings or layers, each in equal parts."""

    names: tuple[str, ...]
    parts: int = 1  # of each, such as bands


class Candidate(NamedTuple):
    """One way to score."""

    view: str  # its name
    scorer: Knn


def options(scorer: Knn) -> str:
    """Return what follows `asdjax score RUN` to score so."""
    return " ".join(["knn", *_options(scorer)])


def _options(config: Knn | Density | DomainScale, prefix: str = "") -> Iterator[str]:
    """Yield the options that change the defaults of a configuration, a nested one at the end."""
    nested: list[str] = []
    for one in fields(config):
        value, name = getattr(config, one.name), f"{prefix}{one.name.replace('_', '-')}"
        if value == one.default:
            continue
        if is_dataclass(value):
            words = re.sub("(?<!^)(?=[A-Z])", "-", type(value).__name__).lower()
            nested = [f"{name}:{words}", *_options(value, f"{name}.")]
        elif isinstance(value, bool):
            yield f"--{name}"
        else:
            values = value if isinstance(value, tuple) else (value,)
            yield " ".join([f"--{name}", *map(str, values)])
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
    maximum over them, each with every normalization. So are all views together, which are the parts
    then.

    Args:
      train, test: as of `asdjax.scoring.score.score`.
      views: of the vectors.
      advance: called with how many more candidates are scored.
    """
    ways, wholes = normalizations(), []
    for number, name in enumerate(views.names):
        of = (number, len(views.names)) if len(views.names) > 1 else None
        own = [view(machines, *of) if of else machines for machines in (train, test)]
        for parts in sorted({1, views.parts}):
            banks = list(map(_bank, *(split(machines, parts) for machines in own)))
            found = matching.scores(banks, [(way, one == "domain") for way, one in ways])
            if parts == 1:
                wholes.append(found)
            yield from _mixed(Candidate(name, Knn(view=of, parts=parts)), found)
            advance(len(ways) * (2 if parts > 1 else 1))
    if len(views.names) > 1:
        banks = list(map(_bank, train, test))
        found = matching.scores(banks, [(way, one == "domain") for way, one in ways])
        yield from _mixed(Candidate("all", Knn()), found)
        machines = range(len(train))
        each = [[whole[side][g] for g in machines for whole in wholes] for side in (0, 1)]
        yield from _mixed(Candidate("all", Knn(parts=len(wholes))), each)
        advance(3 * len(ways))


def _mixed(of: Candidate, found: tuple[list[np.ndarray], list[np.ndarray]]) -> Iterator[tuple]:
    """Yield what `score_all` does, from the scores of parts by all ways."""
    parts = of.scorer.parts
    for row, (way, references) in enumerate(normalizations()):
        scores = [[one[row] for one in side] for side in found]
        for mix in ("mean", "max") if parts > 1 else ("mean",):
            scorer = replace(of.scorer, references=references, mix=mix, normalize=way)
            yield of._replace(scorer=scorer), *(mixed(one, parts, mix) for one in scores)


def count(views: Views) -> int:
    """Return how many candidates `score_all` yields."""
    names, together = len(views.names), 3 if len(views.names) > 1 else 0
    return len(normalizations()) * (names * (3 if views.parts > 1 else 1) + together)


def _bank(train: Embeddings, test: Embeddings) -> Bank:
    return bank(train, train.values[:0], test.values)


def consistency(left_out: np.ndarray, domains: np.ndarray) -> float:
    """Return how alike normal clips of source and target score, from 0 to 1.

    With P the share of pairs of a target and a source training clip in which the target clip scores
    higher, left out, it is 1 - |2 P - 1|. nan without clips of both domains, and for scores that
    are not finite.

    Args:
      left_out: `[n]`, scores of the training clips of a machine.
      domains: `[n]`, of these clips.
    """
    target, source = (np.sort(left_out[domains == one]) for one in ("target", "source"))
    if not (len(target) and len(source) and np.isfinite(left_out).all()):
        return float("nan")
    below, upto = (np.searchsorted(source, target, side) for side in ("left", "right"))
    return float(1 - abs((below + upto).mean() / len(source) - 1))  # ties count half
