"""Official scores of small systems and of many ways to compare embeddings, as tables.

    python experiments/quality.py --data real=DIR synthetic=DIR --out RUNS > experiments/QUALITY.md

Needs `asdjax weights fetch mn04`. Systems that train do so from three starts. The tables of ways
are those of `asdjax search --labels`: what is best there was seen on these very test clips.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean, mean, median

import numpy as np

from asdjax.config import SystemConfig
from asdjax.data import synthetic
from asdjax.metrics.official import TOTAL, Metric, official_scores
from asdjax.models.logmel import LogMel
from asdjax.models.pooling import Pool
from asdjax.recipes import RECIPES
from asdjax.recipes.frozen import frozen
from asdjax.scoring.density import Density
from asdjax.scoring.domain_scale import DomainScale
from asdjax.scoring.knn import Knn
from asdjax.scoring.mahalanobis import Mahalanobis
from asdjax.scoring.minimum import Minimum
from asdjax.scoring.oversampling import MemMixup, Smote
from asdjax.scoring.residual import Residual
from asdjax.scoring.score import score
from asdjax.scoring.search import Views, score_all
from asdjax.stages import folder, search, stages
from asdjax.stages.members import labelled_clips
from asdjax.types import Clip

FROZEN = "frozen/logmel", "beyond/logmel", "frozen/mn04", "beyond/mn04"
TRAINED = "small/dual", "small/mn04", "baseline/mse"
STARTS = 3
POOLS = (
    Pool(bands=True),
    Pool(4.0, bands=True),
    Pool(8.0, bands=True),
    Pool(19.0, bands=True),
    Pool(power=3.0, bands=True),
    Pool(8.0, 3.0, bands=True),
)
VIEWS = {
    "log-mel, mean and deviation": (LogMel(8),),
    "log-mel": (LogMel(8, POOLS),),
    "mn04": (replace(frozen("mn04"), pools=POOLS),),
}
SHOWN = {  # heading -> options behind `knn` and the parts
    "distance": "",
    "LDN 1": "normalize:density",
    "LDN 2": "normalize:density --normalize.neighbors 2",
    "LDN 16, 0.9": "normalize:density --normalize.neighbors 16 --normalize.decay 0.9",
    "difference 1": "normalize:density --normalize.form difference",
    "VarMin 4": "normalize:density --normalize.neighbors 4 --normalize.form difference "
    "--normalize.strength variance",
    "log-VarMin 1": "normalize:density --normalize.strength variance",
    "LDN by domain": "--references domain normalize:density --normalize.neighbors 16 "
    "--normalize.target-neighbors 9 --normalize.scale sum",
    "domain scale": "--references domain normalize:domain-scale",
}
SCORED = (*FROZEN, "small/dual")  # by other scorers
SCORERS = {
    "distance": Knn(),
    "LDN 1": Knn(normalize=Density()),
    "LDN 16": Knn(normalize=Density(16)),
    "LDN 16, exits": Knn(normalize=Density(16, exits=True)),
    "standardized": Knn(standardize="machine"),
    "standardized, LDN 1": Knn(standardize="machine", normalize=Density()),
    "SMOTE": Knn(oversample=Smote()),
    "SMOTE, LDN 1": Knn(oversample=Smote(), normalize=Density()),
    "MemMixup": Knn(oversample=MemMixup()),
    "MemMixup, LDN 1": Knn(oversample=MemMixup(), normalize=Density()),
    "Mahalanobis": Mahalanobis(),
    "PCA residual": Residual(),
    "PCA residual by domain": Residual(references="domain"),
    "minimum of four": Minimum(),
}
TWO = "frozen/logmel", "beyond/logmel", "beyond/mn04"  # with two microphones
CHANNELS = {
    "near": 0,
    "far": 1,
    "wiener": "wiener",
    "magnitude": "magnitude",
    "residual": "residual",
}
TARGETS = 1, 2, 5, 10, 25, 50, 100  # training clips beside 100 of the source domain
BALANCED = {
    "distance": Knn(),
    "LDN 1": Knn(normalize=Density()),
    "LDN 16": Knn(normalize=Density(16)),
    "LDN by domain": Knn(
        references="domain", normalize=Density(16, target_neighbors=9, scale="sum")
    ),
    "domain scale": Knn(references="domain", normalize=DomainScale()),
}
FAR = (0.9, 0.0), (0.9, 0.05), (0.0, 0.0)  # common and leak of synthetic machines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--seconds", nargs="+", type=float, default=[10.0, 4.0], help="of clips")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = {name: Path(where) for name, where in (one.split("=", 1) for one in given.data)}
    lengths = dict(zip(data, given.seconds, strict=True))
    scores, ways, others, two, gaps = {}, {}, {}, {}, {}
    with contextlib.redirect_stdout(io.StringIO()):
        for name, where in data.items():
            out = given.out / name
            for system in (*FROZEN, *TRAINED):
                scores[name, system] = of_system(system, where, lengths[name], out)
            for system in SCORED:
                starts = sorted((out / system).iterdir())
                others[name, system] = np.mean([of_scorers(one) for one in starts], 0).tolist()
            for view, encoders in VIEWS.items():
                run = out / view.replace(" ", "-")
                stages.run(SystemConfig(encoders, Knn()), where, run)
                alike = search.search([run], out=run / "unlabelled.csv")
                ways[name, view] = search.search([run], labels=True), alike
                gaps |= {(name, view, machine): row for machine, row in of_domains(run).items()}
        for far in FAR:
            two[far] = of_two_microphones(*far, given.out / "two-{}-{}".format(*far))
        balance = of_balance(given.out / "balance")
    print(text(list(data), scores, ways))
    print("\n".join(["", "## Source and target", "", *table_of_domains(gaps)]))
    print("\n".join(["", "## Balance of domains", "", *table_of_balance(balance)]))
    print("\n".join(["", "## Other scorers", "", *table_of_scorers(list(data), others)]))
    print("\n".join(["", "## Two microphones", "", *table_of_channels(two)]))


def of_system(name: str, data: Path, seconds: float, out: Path) -> list[list[Metric]]:
    """Return the official numbers of a recipe, for each start."""
    config, found = RECIPES[name].config, []
    for seed in range(STARTS if config.train else 1):
        own = config
        if config.train:
            own = replace(own, train=replace(own.train, seed=seed))
        if config.audio.seconds is not None:
            own = replace(own, audio=replace(own.audio, seconds=seconds))
        found.append(stages.run(own, data, out / name / str(seed)))
    return found


def official(numbers: Sequence[Metric]) -> float:
    """Return the official score, per cent."""
    (value,) = [m.value for m in numbers if (m.machine, m.metric) == (TOTAL, "official_score")]
    return 100 * value


def of_scorers(path: Path) -> list[float]:
    """Return the official scores of a run's embeddings by all of `SCORERS`, per cent."""
    run = folder.load(path)
    machines = [folder.load_embeddings(path, run, group) for group in run.groups]
    train, test = ([one.select(split) for one in machines] for split in ("train", "test"))
    tests = [score(train, test, scorer)[0] for scorer in SCORERS.values()]
    stacked = [np.stack(of) for of in zip(*tests, strict=True)]
    return (100 * official_scores(labelled_clips(run), stacked, run.year)).tolist()


def of_two_microphones(common: float, leak: float, out: Path) -> dict[tuple[str, str], float]:
    """Return the official scores of systems and channels on synthetic machines, per cent."""
    how = {"microphones": 2, "common": common, "leak": leak}
    data, found = synthetic.make(out / "data", **how), {}
    for system in TWO:
        for name, channel in CHANNELS.items():
            config = RECIPES[system].config
            config = replace(config, audio=replace(config.audio, channel=channel))
            found[system, name] = official(stages.run(config, data, out / system / name))
    return found


def of_domains(path: Path) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return AUC source and target by distances and by LDN 1, of each machine and way of a run."""
    run = folder.load(path)
    machines = [folder.load_embeddings(path, run, group) for group in run.groups]
    train, test = ([one.select(split) for one in machines] for split in ("train", "test"))
    areas: dict[tuple, np.ndarray] = {}
    for way, tests, _ in score_all(train, test, Views(*run.system.views)):
        normalize = way.scorer.normalize
        if normalize not in (None, Density()) or way.scorer.references == "domain":
            continue
        for (machine, _), of, values in zip(run.groups, test, tests, strict=True):
            key = machine, way.view, way.scorer.view, way.scorer.parts, way.scorer.mix
            areas[*key, normalize is None] = areas_of(of.clips, values)
    pairs: dict[str, list] = {}
    for (machine, *way, plain), area in areas.items():
        if plain:
            pairs.setdefault(machine, []).append((area, areas[machine, *way, False]))
    return pairs


def areas_of(clips: Sequence[Clip], values: np.ndarray) -> np.ndarray:
    """Return AUC source and target: normal clips of a domain against all anomalies, per cent."""
    from sklearn.metrics import roc_auc_score

    found = []
    for domain in ("source", "target"):
        kept = np.array([clip.label == 1 or clip.domain == domain for clip in clips])
        found.append(roc_auc_score([c.label for c in clips], values, sample_weight=kept))
    return 100 * np.array(found)


def of_balance(out: Path) -> dict[int, list[np.ndarray]]:
    """Return official score, AUC source and target by all of `BALANCED` and `TARGETS`."""
    data = synthetic.make(out / "data", train_target=max(TARGETS))
    stages.run(RECIPES["frozen/logmel"].config, data, out / "run")
    run = folder.load(out / "run")
    machines = [folder.load_embeddings(out / "run", run, group) for group in run.groups]
    test, found = [one.select("test") for one in machines], {}
    for count in TARGETS:
        train = []
        for one in (machine.select("train") for machine in machines):
            target = [i for i, clip in enumerate(one.clips) if clip.domain == "target"]
            kept = np.setdiff1d(np.arange(len(one.clips)), target[count:])
            train.append(one.take(kept))
        found[count] = []
        for scorer in BALANCED.values():
            scores = score(train, test, scorer)[0]
            rows = [one[None] for one in scores]
            (total,) = 100 * official_scores(labelled_clips(run), rows, run.year)
            of = [areas_of(one.clips, x) for one, x in zip(test, scores, strict=True)]
            found[count].append(np.array([total, *np.mean(of, 0)]))
    return found


def table_of_domains(gaps: Mapping) -> list[str]:
    """Return a row for each machine and view: what LDN 1 changes, means over ways."""
    head = ["ways", "AUC source", "AUC target", "difference", "smaller in"]
    lines = ["| distance -> LDN 1 | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for (name, view, machine), pairs in gaps.items():
        before, after = np.swapaxes(pairs, 0, 1)
        cells = [str(len(pairs))]
        cells += [f"{a:.1f} -> {b:.1f}" for a, b in zip(before.mean(0), after.mean(0), strict=True)]
        apart = [np.abs(one[:, 0] - one[:, 1]) for one in (before, after)]
        cells.append("{:.1f} -> {:.1f}".format(*(one.mean() for one in apart)))
        cells.append(f"{100 * np.mean(apart[1] < apart[0]):.0f} %")
        lines.append(f"| {name}, {machine}, {view} | {' | '.join(cells)} |")
    return lines


def table_of_balance(balance: Mapping) -> list[str]:
    """Return a row for each number of target clips, a column for each way."""
    lines = ["| target clips | " + " | ".join(BALANCED) + " |", "|---|" + "---|" * len(BALANCED)]
    for count, found in balance.items():
        cells = ["{:.1f} ({:.0f} / {:.0f})".format(*one) for one in found]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return lines


def table_of_machines(name: str, scores: Mapping) -> list[str]:
    """Return a row for each system: AUC source, AUC target, pAUC and their harmonic mean."""
    some = next(of for (data, _), of in scores.items() if data == name)[0]
    machines = sorted({m.machine for m in some if m.metric == "auc_source"})
    lines = ["| | " + " | ".join(machines) + " |", "|---|" + "---|" * len(machines)]
    for system in (*FROZEN, *TRAINED):
        cells = []
        for machine in machines:
            metrics = "auc_source", "auc_target", "pauc"
            found = [
                [
                    100 * m.value
                    for n in metrics
                    for m in one
                    if (m.machine, m.metric) == (machine, n)
                ]
                for one in scores[name, system]
            ]
            cells.append("{:.1f} / {:.1f} / {:.1f}".format(*np.mean(found, 0)))
            cells[-1] += f", {mean(map(harmonic_mean, found)):.1f}"
        lines.append(f"| `{system}` | {' | '.join(cells)} |")
    return lines


def table_of_scorers(data: Sequence[str], others: Mapping) -> list[str]:
    """Return a row for each scorer, a column for each system and data set."""
    columns = [(name, system) for name in data for system in SCORED]
    head = [f"{name}, `{system}`" for name, system in columns]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for row, scorer in enumerate(SCORERS):
        cells = [f"{others[column][row]:.1f}" for column in columns]
        lines.append(f"| {scorer} | {' | '.join(cells)} |")
    return lines


def table_of_channels(two: Mapping) -> list[str]:
    """Return a row for each system and far microphone, a column for each channel."""
    lines = ["| | " + " | ".join(CHANNELS) + " |", "|---|" + "---|" * len(CHANNELS)]
    for (common, leak), found in two.items():
        for system in TWO:
            cells = [f"{found[system, channel]:.1f}" for channel in CHANNELS]
            far = f"{100 * common:.0f} % of its noise common, {100 * leak:.0f} % of the machine"
            lines.append(f"| `{system}`, {far} | {' | '.join(cells)} |")
    return lines


def text(data: Sequence[str], scores: Mapping, ways: Mapping) -> str:
    """Return the page."""
    lines = ["| system | " + " | ".join(data) + " |", "|---|" + "---|" * len(data)]
    for system in (*FROZEN, *TRAINED):
        cells = []
        for name in data:
            values = list(map(official, scores[name, system]))
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}")
        lines.append(f"| `{system}` | " + " | ".join(cells) + " |")
    for name in data:
        lines += ["", f"By machine, {name}:", "", *table_of_machines(name, scores)]
    for name in data:
        lines += ["", f"## {name}", "", "| | " + " | ".join(SHOWN) + " |"]
        lines.append("|---|" + "---|" * len(SHOWN))
        for view in VIEWS:
            lines += rows(view, ways[name, view][0])
    return "\n".join([*lines, "", "## What a ranking says", "", *rankings(list(data), ways)])


def rankings(data: Sequence[str], ways: Mapping) -> list[str]:
    """Return how well a ranking without labels, and one by other data, agree with the scores."""
    from scipy.stats import spearmanr

    def scored(name: str, view: str) -> dict:
        return {(r["view"], r["scorer"]): r["mean official score"] for r in ways[name, view][0]}

    head = ["ways", "best", "median", "put first without labels", "rank correlation of that"]
    head += [f"rank correlation with {other}" for other in data]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name in data:
        for view in VIEWS:
            own = scored(name, view)
            alike = {(r["view"], r["scorer"]): r["mean consistency"] for r in ways[name, view][1]}
            first = own[max(alike, key=alike.get)]
            cells = [
                len(own),
                *(f"{100 * x:.1f}" for x in (max(own.values()), median(own.values()), first)),
            ]
            others = [alike, *(scored(other, view) for other in data)]
            cells += [
                f"{spearmanr(list(own.values()), [x[w] for w in own])[0]:.2f}" for x in others
            ]
            lines.append(f"| {name}, {view} | " + " | ".join(map(str, cells)) + " |")
    return lines


def rows(view: str, found: Sequence[Mapping]) -> list[str]:
    """Return a row for each pooling, compared as a whole and part by part."""
    score = {
        (row["view"], re.sub(" --view [0-9]+ [0-9]+", "", row["scorer"])): row[
            "mean official score"
        ]
        for row in found
    }
    lines = []
    for pool in dict.fromkeys(row["view"] for row in found):
        own = {scorer for view, scorer in score if view == pool}
        parts = sorted({word for scorer in own for word in parts_of(scorer)})
        for part in ("", *parts):
            cells = []
            for options in SHOWN.values():
                first, _, rest = options.partition("normalize:")
                words = f"knn {first}{part} {'normalize:' + rest if rest else ''}".split()
                cells.append(f"{100 * score[pool, ' '.join(words)]:.1f}")
            name = view if pool.startswith("mean and") else f"{view}, {pool}"
            lines.append(
                f"| {name}{', ' + part.strip('-') if part else ''} | {' | '.join(cells)} |"
            )
    return lines


def parts_of(scorer: str) -> list[str]:
    words = scorer.split()
    if "--parts" not in words:
        return []
    mix = " --mix max" if "max" in words else ""
    return [f"--parts {words[words.index('--parts') + 1]}{mix}"]


if __name__ == "__main__":
    sys.exit(main())
