"""Cosine distance to the nearest normal clips: one blocked kernel for all machines at once.

Products have full precision also where TF32 would be the default; small distances, which `1 - cos`
would round, are computed again (`chords.py`): all are right to 1e-5 of their value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.scoring import matching
from asdjax.scoring.blocks import PADDING, largest
from asdjax.scoring.chords import SMALLEST, chord_distances, mean_of_found, normalized
from asdjax.scoring.density import Density
from asdjax.scoring.distances import TARGET, Bank, unit_rows
from asdjax.scoring.domain_scale import DomainScale
from asdjax.scoring.folds import (
    FOLDS,
    Fitted,
    Machines,
    Note,
    ReferenceSet,
    name,
    reference_sets,
    smallest,
    stack,
    unit,
)
from asdjax.scoring.oversampling import MemMixup, Smote, oversample
from asdjax.types import Embeddings, InputError, check, counted, take_rows

# Cosines of rows of E values err by 6e-8 sqrt(E), 3e-6 at E = 2304: 1e-5 of a larger distance.
NEAR = 0.25
WHOLE_BYTES = 2**31  # of references that are searched in one call
BLOCK_BYTES = 2**28  # of larger sets, at a time


@dataclass(frozen=True)
class Knn:
    """Mean cosine distance to the nearest normal training clips.

    Args:
      k: neighbors averaged.
      references: "pooled" searches all training clips of a machine; "domain" searches source and
        target clips separately and takes the smaller distance.
      standardize: first subtract the mean of the training clips, of the "machine" or of "all", and
        divide by their deviation; None does not. The cosine then compares directions from the mean,
        and how far a clip lies from it is lost: an extreme clip may score lower than one near the
        mean.
      oversample: adds synthetic clips to the target clips that are searched; None adds none.
      view: number, from 0, and count of vectors that lie side by side in an embedding, of several
        poolings or layers, of which this one is compared; None: the whole.
      parts: equal parts of an embedding, such as the bands of a pooling that keeps them, each with
        neighbors of its own (BEAM); as many as there are layers or poolings: scores are averaged
        over these; 1: it is searched as a whole.
      mix: of the scores of the parts, their "mean" or "max".
      normalize: of distances by how densely the references lie (`Density`), or by what is usual in
        their domain (`DomainScale`), where only the nearest counts (k = 1); None: as they are.

    Source of parts: Saengthong and Shinozaki 2026, "Sub-band spectral matching with localized score
        aggregation for robust anomalous sound detection" (arXiv 2603.13749).
    """

    k: int = 1
    references: Literal["pooled", "domain"] = "pooled"
    standardize: Literal["machine", "all"] | None = None
    oversample: Smote | MemMixup | None = None
    view: tuple[int, int] | None = None
    parts: int = 1
    mix: Literal["mean", "max"] = "mean"
    normalize: Density | DomainScale | None = None

    def __post_init__(self):
        known = self.standardize in (None, "machine", "all")
        number, count = self.view or (0, 1)
        check(
            self,
            ("k", ">= 1", self.k >= 1),
            ("k", "1 with normalize", self.k == 1 or self.normalize is None),
            ("standardize", "machine, all or none", known),
            ("view", "a number below a count, or none", 0 <= number < count),
            ("parts", ">= 1", self.parts >= 1),
        )

    def fit(self, train: Machines, note: Note) -> Fitted:
        """Fit as `asdjax.scoring.folds.Fitted` says.

        Scores of training clips never use synthetic clips, which lie near the clips that they are
        made from. So with these they tend to be larger than the scores of normal test clips, and a
        threshold from them is high. `note` says which machines get no synthetic clips, and why.

        Raises:
          InputError: embeddings that cannot be cut into `parts`.
        """
        width, count = train[0].values.shape[1], self.view[1] if self.view else 1
        if width % (count * self.parts):
            raise InputError(
                f"expected views and parts that divide the {width} values of an embedding, got "
                f"{counted(count, 'view')} of {counted(self.parts, 'part')}"
            )
        raw = view(train, *self.view) if self.view else train
        train = _standardized(raw, raw, self.standardize) if self.standardize else raw
        synthetic = self._synthetic(train, note)
        self._note_few(train, synthetic, note)
        added = [part for rows in synthetic for part in np.split(rows, self.parts, 1)]
        of_parts = self._nearest if self.normalize is None else self._normalized
        scored, of_training = of_parts(split(train, self.parts), added)

        def score(test: Machines) -> list[np.ndarray]:
            test = view(test, *self.view) if self.view else test
            test = _standardized(test, raw, self.standardize) if self.standardize else test
            return mixed(scored(split(test, self.parts)), self.parts, self.mix)

        def left_out() -> list[np.ndarray]:
            if self.standardize:
                return self._left_out_standardized(raw)
            return mixed(of_training(), self.parts, self.mix)

        return score, left_out

    def _nearest(self, train: Machines, synthetic: Sequence[np.ndarray]) -> Fitted:
        sets = reference_sets(train, self.references)
        grown = None
        if self.oversample:
            grown = []
            for g, rows in sets:
                target = any(train[g].clips[i].domain == "target" for i in rows)
                added = [synthetic[g]] if target else []
                grown.append(np.concatenate([train[g].values[rows], *added]))
        scored, of_training = nearest(train, sets, self.k, grown)
        return lambda test: smallest(scored(test), sets), lambda: smallest(of_training(), sets)

    def _normalized(self, train: Machines, synthetic: Sequence[np.ndarray]) -> Fitted:
        banks = [bank(*one) for one in zip(train, synthetic, strict=True)]
        asked = self.normalize, self.references == "domain"
        known = cache(lambda: matching.fit(banks, asked))

        def score(test: Machines) -> list[np.ndarray]:
            queries = [unit_rows(one.values) for one in test]
            pairs = zip(banks, queries, known(), strict=True)
            return [matching.tests(of._replace(queries=rows), one) for of, rows, one in pairs]

        return score, lambda: [one for (one,) in matching.scores(banks, [asked])[1]]

    def _synthetic(self, train: Machines, note: Note) -> list[np.ndarray]:
        """Return the synthetic rows of each machine."""
        if not self.oversample:
            return [machine.values[:0] for machine in train]
        synthetic = []
        for machine in train:
            domains = [clip.domain for clip in machine.clips]
            made, why = oversample(unit(machine.values), domains, self.oversample)
            synthetic.append(made)
            if why:
                note(f"{self.oversample.name} skipped for {name(machine)}: {why}")
        return synthetic

    def _note_few(self, train: Machines, synthetic: Sequence[np.ndarray], note: Note) -> None:
        """Tell where there are fewer clips than neighbors that are asked for."""
        sets = reference_sets(train, self.references)
        for g, rows in sets:
            domains = {train[g].clips[i].domain for i in rows} - {None}
            of = next(iter(domains)) if len(sets) > len(train) and domains else ""
            added = len(synthetic[g]) if "target" in domains else 0
            if len(rows) + added < self.k:
                there = counted(len(rows) + added, " ".join([of, "clip"]).strip())
                note(f"{name(train[g])}: {there} in place of {self.k} neighbors")
            if isinstance(self.normalize, Density):
                most = max(self.normalize.counts) if not of else self.normalize.count(of)
                others = (
                    "clips of its machine"
                    if of and len(rows) == 1
                    else counted(len(rows) - 1, "neighbor")
                )
                if len(rows) <= most:
                    note(
                        f"{name(train[g])}: local scales of {of or 'all'} clips are from {others} "
                        f"in place of {most}"
                    )

    def _left_out_standardized(self, train: Machines) -> list[np.ndarray]:
        """Return the scores of training clips, each standardized by statistics without its fold."""
        found = [np.zeros(len(machine.clips), np.float32) for machine in train]
        folds = [np.arange(len(machine.clips)) % FOLDS for machine in train]
        plain = replace(self, view=None, standardize=None, oversample=None)
        for fold in range(FOLDS):
            pairs = zip(train, folds, strict=True)
            others = [machine.take(np.flatnonzero(own != fold)) for machine, own in pairs]
            scaled = _standardized(train, others, self.standardize)
            scores = plain.fit(scaled, lambda _: None)[1]()
            for values, score, own in zip(found, scores, folds, strict=True):
                values[own == fold] = score[own == fold]
        return found


def view(machines: Machines, number: int, count: int) -> list[Embeddings]:
    """Return one of `count` vectors that lie side by side in each embedding."""
    return [replace(one, values=np.split(one.values, count, 1)[number]) for one in machines]


def split(machines: Machines, parts: int) -> list[Embeddings]:
    """Return equal parts of the embeddings of each machine, one behind the other."""
    return [
        replace(machine, values=values)
        for machine in machines
        for values in np.split(machine.values, parts, 1)
    ]


def mixed(scores: Sequence[np.ndarray], parts: int, how: str) -> list[np.ndarray]:
    """Return the scores of each machine's clips from those of its parts, `[..., n]`."""
    mix = {"mean": np.mean, "max": np.max}[how]
    return [mix(scores[start : start + parts], 0) for start in range(0, len(scores), parts)]


def bank(train: Embeddings, synthetic: np.ndarray, test: np.ndarray | None = None) -> Bank:
    """Return what the test clips `[Q, E]` of a machine are compared with."""
    test = train.values[:0] if test is None else test
    number = {"source": 0, "target": TARGET, None: 2}
    domain = np.array([number[clip.domain] for clip in train.clips], np.int32)
    references, added, queries = map(unit_rows, (train.values, synthetic, test))
    return Bank(references, domain, added, queries)


def _standardized(machines: Machines, by: Machines, of: str) -> list[Embeddings]:
    """Return the machines by the statistics of others, each by its own or all by all of them."""
    values = [one.values for one in by]
    if of == "all":
        values = [np.concatenate(values)] * len(values)
    return [_standardize(machine, one) for machine, one in zip(machines, values, strict=True)]


def _standardize(embeddings: Embeddings, by: np.ndarray) -> Embeddings:
    if not len(by):  # the only clip, which is compared with nothing
        return embeddings
    mean, deviation = by.mean(0), by.std(0)
    # A dimension that is constant up to rounding has no scale of its own.
    deviation = np.where(deviation > 1e-5 * np.abs(mean), deviation, 1.0)
    return replace(embeddings, values=(embeddings.values - mean) / deviation)


def nearest(
    train: Machines,
    sets: Sequence[ReferenceSet],
    k: int = 1,
    grown: Sequence[np.ndarray] | None = None,
) -> Fitted:
    """Return functions as of `Fitted`, but for each set: the distances to its clips.

    A training clip is not its own neighbor.

    Args:
      grown: what test clips are compared with in place of the rows of the sets.
    """
    references = [take_rows(train[g].values, rows) for g, rows in sets]
    places = []  # of each training clip in the set, or PADDING
    for g, rows in sets:
        places.append(np.full(len(train[g].values), PADDING))
        places[-1][rows] = np.arange(len(rows))

    def score(test: Machines) -> list[np.ndarray]:
        return knn_scores([test[g].values for g, _ in sets], grown or references, k)

    def left_out() -> list[np.ndarray]:
        return knn_scores([train[g].values for g, _ in sets], references, k, places)

    return score, left_out


def knn_scores(
    queries: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    k: int = 1,
    own: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Return the mean cosine distance (1 - cos) of each query to its `k` nearest references.

    Groups (machines) whose references are of similar number are scored in one call, padded to the
    largest. References of more than `WHOLE_BYTES`, which may be memory-mapped (`open_references`),
    are read in blocks of `BLOCK_BYTES`, of which two are in memory at a time.

    Args:
      queries: per group `[Q_g, E]`.
      references: per group `[R_g, E]`, R_g >= 1, normal clips only; fewer than `k` rows: all are
        averaged.
      own: per group `[Q_g]`, the reference that is the query itself and is left out of its
        neighbors, or -1; None leaves nothing out.

    Returns:
      Per group `[Q_g]` float32 in [0, 2], larger = more anomalous; inf where `own` leaves none.
    """
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    buckets: dict[int, list[int]] = defaultdict(list)
    scores = [np.zeros(len(query), np.float32) for query in queries]
    for group, rows in enumerate(references):
        if len(queries[group]) and rows.nbytes > WHOLE_BYTES:
            scores[group] = _by_blocks(queries[group], rows, k, None if own is None else own[group])
        elif len(queries[group]):
            buckets[len(rows).bit_length()].append(group)
    for groups in buckets.values():
        query, reference = (stack([x[g] for g in groups]) for x in (queries, references))
        identity = [np.arange(len(references[g]), dtype=np.int32) for g in groups]
        query_id = np.full(query.shape[:2], PADDING, np.int32)
        if own is not None:
            query_id = stack([own[g].astype(np.int32) for g in groups], PADDING)
        rows = query, reference, query_id, stack(identity, PADDING)
        distance = np.array(knn_distance(*rows, k))
        near = distance < NEAR
        if near.any():
            distance[near] = mean_of_found(chord_distances(*rows, k, near))
        for group, row in zip(groups, distance, strict=True):
            scores[group] = row[: len(queries[group])]
    return scores


def _by_blocks(query: np.ndarray, references: np.ndarray, k: int, own) -> np.ndarray:
    """Return the same `[Q]` of one group; a block is read while the one before it is searched."""
    count, width = references.shape
    rows = min(max(BLOCK_BYTES // (4 * width), 1), count)
    query_id = np.full(len(query), PADDING, np.int32) if own is None else own.astype(np.int32)
    every = np.ones((1, len(query)), bool)
    best = np.full((len(query), k), np.inf)

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        block, identity = np.zeros((rows, width), np.float32), np.full(rows, PADDING, np.int32)
        found = references[start : start + rows]
        block[: len(found)] = found
        identity[: len(found)] = np.arange(start, start + len(found))
        return block[None], identity[None]

    with ThreadPoolExecutor(1) as reader:
        starts = list(range(0, count, rows))
        coming = reader.submit(read, starts[0])
        for following in [*starts[1:], None]:
            block, identity = coming.result()
            if following is not None:
                coming = reader.submit(read, following)
            found = chord_distances(query[None], block, query_id[None], identity, k, every)
            best = np.sort(np.concatenate([best, found], 1))[:, :k]
    return mean_of_found(best).astype(np.float32)


def open_references(path: Path | str) -> np.ndarray:
    """Return `[R, E]` float32 of a `.npy` file, memory-mapped: it may be larger than the memory.

    Raises:
      InputError: no such file, another kind of file, or one that is shorter than its header says.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected a .npy file of float32 rows [R, E]")
    with Path(path).open("rb") as file:
        numpys = file.read(6) == b"\x93NUMPY"
    got = "another file"
    try:
        if numpys:
            found = np.load(path, mmap_mode="r")
            got = f"{found.dtype} {list(found.shape)}"
            if found.dtype == np.float32 and found.ndim == 2 and found.size:
                return found
    except (OSError, ValueError, EOFError) as error:
        got = f"one that is cut short or holds other values ({error})"
    raise InputError(
        f"{path}: expected a .npy file of float32 rows [R, E], got {got}; write it again with "
        "numpy.save"
    )


@partial(jax.jit, static_argnames="k")
def knn_distance(query, reference, query_id, reference_id, k: int = 1):
    """Return mean cosine distances `[G, Q]` to the `k` nearest references of each group.

    Args:
      query, reference: `[G, Q, E]` and `[G, R, E]`; normalized here, a zero row has distance 1 to
        all.
      query_id, reference_id: as of `asdjax.scoring.blocks.largest`.
    """

    def similarity(block):
        return partial(cosine, normalized(block))

    best, _ = largest(similarity, query, reference, query_id, reference_id, k)
    found = jnp.isfinite(best)
    total = jnp.where(found, jnp.maximum(1.0 - best, 0.0), 0.0).sum(-1)
    return jnp.where(found.any(-1), total / jnp.maximum(found.sum(-1), 1), jnp.inf)


def cosine(query, reference):
    """Return `[G, Q, R]` from unit queries and any references.

    Products are divided by the references' lengths: this spares a copy of the references.
    """
    length = jax.lax.rsqrt(jnp.maximum(jnp.square(reference).sum(-1), SMALLEST))
    product = jnp.einsum("gqe,gre->gqr", query, reference, precision=jax.lax.Precision.HIGHEST)
    return product * length[:, None]
