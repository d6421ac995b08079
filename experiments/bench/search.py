"""Scores in many ways: ours at once, and one way after the other with numpy and scikit-learn.

    python experiments/bench/search.py [--machines 7] [--views 2]

prints the seconds of a whole search, with and without what is compiled at first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from asdjax.scoring import matching
from asdjax.scoring import search as searching
from asdjax.scoring.density import Density
from asdjax.scoring.domain_scale import DomainScale
from asdjax.scoring.knn import Knn, bank
from asdjax.scoring.score import score
from asdjax.scoring.search import Views
from asdjax.types import Clip, Embeddings

BANDS, WIDTH, TRAIN, TEST, TARGETS = 8, 768, 1000, 200, 10
NORMALIZATIONS = (  # of one matrix of distances
    (Density(1), False),
    (Density(2, form="difference"), False),
    (Density(16, decay=0.9), False),
    (Density(4, form="difference", strength="variance"), False),
    (Density(1, strength="variance"), False),
    (Density(16, target_neighbors=9, scale="sum"), True),
    (DomainScale(), True),
)


def embeddings(machines: int, views: int = 1, bands: int = BANDS) -> list[list[Embeddings]]:
    """Return training and test clips of machines: a direction of each, and noise."""
    found = []
    for seed, (name, count) in enumerate((("train", TRAIN), ("test", TEST))):
        rng, parts = np.random.default_rng(seed), []
        clips = tuple(
            Clip(
                Path(f"{i}.wav"),
                "fan",
                "section_00",
                name,
                "target" if i >= count - TARGETS else "source",
            )
            for i in range(count)
        )
        for machine in range(machines):
            width = views * bands * WIDTH
            middle = np.random.default_rng(machine).standard_normal((1, width))
            rows = middle + 0.3 * rng.standard_normal((count, width))
            parts.append(Embeddings(clips, rows.astype(np.float32)))
        found.append(parts)
    return found


def ours(machines: int, views: int) -> Callable[[], np.ndarray]:
    """Return what gives the test scores `[ways, machines, clips]`."""
    train, test = embeddings(machines, views)
    names = Views(tuple(map(str, range(views))), BANDS)
    return lambda: np.array([tests for _, tests, _ in searching.score_all(train, test, names)])


def one_by_one(machines: int, views: int) -> Callable[[], np.ndarray]:
    """Return the same by a loop over ways, machines and bands, each from the embeddings on.

    Scores of training clips leave out the clip itself, and no more (ours leave it out of the local
    scales and of what is fitted, too).
    """
    from sklearn.metrics.pairwise import cosine_distances

    train, test = embeddings(machines, views)
    domain = np.array([clip.domain == "target" for clip in train[0].clips])

    def scores(rows: np.ndarray, queries: np.ndarray, way, by_domain: bool) -> np.ndarray:
        apart, away = cosine_distances(rows), cosine_distances(queries, rows)
        np.fill_diagonal(apart, np.inf)
        if way is None:
            apart.min(1)
            return away.min(1)
        if isinstance(way, DomainScale):
            found = []
            for own in (domain, ~domain):
                usual = np.median(apart[np.ix_(own, own)].min(1))
                found.append(away[:, own].min(1) / usual)
            return np.min(found, 0)
        same = domain[:, None] == domain[None] if by_domain else np.ones_like(apart, bool)
        near = np.sort(np.where(same, apart, np.inf), 1)
        ratio = way.form == "ratio"

        def scale(near: np.ndarray, target: bool) -> float:
            count = way.counts[0 if target else 1]
            weight = way.decay ** np.arange(count)
            total = (weight * near[:count]).sum()
            local = total if way.scale == "sum" else total / weight.sum()
            return np.log(local) if ratio else local

        m = np.array([scale(row, target) for row, target in zip(near, domain, strict=True)])
        x, left = (np.log(apart), np.log(away)) if ratio else (apart, away)
        a, shift = 1.0, 0.0
        if way.strength == "variance":
            nearest = apart.argmin(1)
            pairs = [
                scale(np.sort(np.delete(np.where(same[j], apart[j], np.inf), z)), domain[j])
                for z, j in enumerate(nearest)
            ]
            found = x[np.arange(len(x)), nearest]
            a = np.cov(found, pairs, bias=True)[0, 1] / np.var(pairs)
            shift = a * np.mean(pairs)
        (x - a * m[None]).min(1)
        least = (left - a * m[None]).min(1) + shift
        return np.exp(least) if ratio else least

    def call() -> np.ndarray:
        every = []
        for view in range(views):
            for parts in (1, BANDS):
                mixes = (np.mean, np.max) if parts > 1 else (np.mean,)
                for way, references in searching.normalizations():
                    of_parts = [
                        [
                            scores(*pair, way, references == "domain")
                            for pair in zip(
                                *(
                                    np.split(np.split(of.values, views, 1)[view], parts, 1)
                                    for of in machine
                                ),
                                strict=True,
                            )
                        ]
                        for machine in zip(train, test, strict=True)
                    ]
                    every += [[mix(of, 0) for of in of_parts] for mix in mixes]
        return np.array(every)

    return call


def normalized(machines: int) -> Callable[[], np.ndarray]:
    """Return what scores by all normalizations, and leaves out each training clip."""
    train, test = embeddings(machines, bands=1)

    def call() -> np.ndarray:
        banks = [bank(a, a.values[:0], b.values) for a, b in zip(train, test, strict=True)]
        return np.array(matching.scores(banks, NORMALIZATIONS)[0])

    return call


def nearest(machines: int) -> Callable[[], np.ndarray]:
    """Return what scores the same by distances as they are."""
    train, test = embeddings(machines, bands=1)
    return lambda: np.array(score(train, test, Knn())[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machines", type=int, default=7)
    parser.add_argument("--views", type=int, default=2)
    given = parser.parse_args()
    call, seconds = ours(given.machines, given.views), []
    for _ in range(2):
        start = time.perf_counter()
        ways = len(call())
        seconds.append(round(time.perf_counter() - start, 1))
    clips = f"{given.machines} x ({TRAIN} + {TEST}) clips x {BANDS} bands x {WIDTH}"
    print(json.dumps({"clips": clips, "ways": ways, "first_s": seconds[0], "again_s": seconds[1]}))


if __name__ == "__main__":
    main()
