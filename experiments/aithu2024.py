"""Tables 1, 3 and 4 of AITHU 2024 again: ours beside published.

    python experiments/aithu2024.py --data DATA/dcase2024t2/dev_data/raw --out RUNS \
        --weights beats-iter3 eat-base --runs 3
    python experiments/aithu2024.py --data DATA --out RUNS --tiny --hide valve

Trains the seven single systems and combines them into the four ensembles. Numbers are per cent;
harmonic means are those of AUC source, AUC target and pAUC. Ours are means ± deviations over random
starts; the ensembles of a start are of its single systems.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import repeated

from asdjax import params
from asdjax.__main__ import dispatch
from asdjax.models import backbone
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.system import named
from asdjax.recipes import RECIPES
from asdjax.recipes.aithu2024 import (
    COEFFICIENTS,
    MACHINES,
    PUBLISHED,
    PUBLISHED_ENSEMBLES,
    SINGLES,
)
from asdjax.report import console
from asdjax.runs import MODEL
from asdjax.weights import CHECKPOINTS, find

SCALES = {"training clips": [], "test clips, as in the report": ["--transductive"]}
SEARCHED = {"aithu2024/system1": (1, 4, 6), "aithu2024/system3": range(7)}  # which of SINGLES


def main() -> None:
    reading = repeated.parser(__doc__.splitlines()[0], SINGLES)
    reading.add_argument("--tiny", action="store_true", help="small backbones, a few steps")
    reading.add_argument(
        "--hide", nargs="+", default=[], help="machines to take the attributes from, as in 2024"
    )
    given, fields = reading.parse_known_args()
    if given.hide:
        given.data = hide(given.data, given.hide, given.out)
    if given.tiny:
        given.runs = 1
        given.weights = given.weights or tiny_backbones(given)
    results = repeated.run_all(given, fields, tiny_fields if given.tiny else lambda system: ())
    table_1(given, results)
    if set(given.systems) == set(SINGLES):
        seeds = range(given.runs)
        table_3({name: [search(name, seed, given) for seed in seeds] for name in SEARCHED})
        for scale in SCALES:
            found = {n: [combine(n, seed, given, scale) for seed in seeds] for n in COEFFICIENTS}
            table_4(found, scale)


def table_1(given: argparse.Namespace, results: dict[str, list[repeated.Numbers]]) -> None:
    machines = repeated.machines_of(next(iter(results.values())))
    rows = []
    for system, runs in results.items():
        total, trained = counts(given, system)
        ours = [[repeated.mean(run, asked) for run in runs] for asked in ([m] for m in machines)]
        ours.append([repeated.mean(run, machines) for run in runs])
        rows.append([system, total, trained, *map(repeated.spread, ours)])
        theirs = dict(zip((*MACHINES, "all"), PUBLISHED[system], strict=True))
        published = [f"{theirs[m]:.2f}" if m in theirs else "-" for m in (*machines, "all")]
        rows.append(["  published", *RECIPES[system].parameters.split(" / "), *published])
    heading = ["harmonic mean", "total", "trained", *machines, "all"]
    console.table(heading, rows, f"Table 1, {given.data}")


def table_3(searches: dict[str, list[Sequence[float]]]) -> None:
    """Coefficients: the report's two that a search found, and what a search finds on our scores."""
    rows = []
    for name, weights in COEFFICIENTS.items():
        rows.append([name, "published", *(f"{w:g}" for w in weights)])
        for seed, ours in enumerate(searches.get(name, ())):
            rows.append(["", f"ours, seed {seed}", *(f"{w:g}" for w in ours)])
    heading = ["", "", *(name.removeprefix("aithu2024/") for name in SINGLES)]
    console.table(heading, rows, "Table 3; ours by grid search, labels used")


def table_4(found: dict[str, list[repeated.Numbers]], scale: str) -> None:
    machines = repeated.machines_of(next(iter(found.values())))
    names, rows = (*repeated.MEASURED, "hmean"), []
    theirs = {n: dict(zip(MACHINES, v, strict=True)) for n, v in PUBLISHED_ENSEMBLES.items()}
    for machine in (*machines, "hmean"):
        for row, name in enumerate(names):
            cells = []
            for system, runs in found.items():
                asked = machines if machine == "hmean" else [machine]
                ours = [cell([[run[m, k] for k in names[:3]] for m in asked], row) for run in runs]
                known = (
                    theirs[system].values() if machine == "hmean" else [theirs[system].get(machine)]
                )
                published = "-" if None in known else f"{cell(list(known), row):.2f}"
                cells += [repeated.spread(ours), published]
            rows.append([machine if not row else "", name, *cells])
    heading = [x for name in found for x in (name.removeprefix("aithu2024/"), "published")]
    title = f"Table 4; ours with the report's coefficients, z-scores by {scale}"
    console.table(["", "", *heading], rows, title)


def cell(values: Sequence[Sequence[float]], column: int) -> float:
    """Return the harmonic mean over machines of one of three numbers, or of all at column 3."""
    taken = values if column == 3 else [[row[column]] for row in values]
    return statistics.harmonic_mean([x for row in taken for x in row])


def combine(name: str, seed: int, given: argparse.Namespace, scale: str) -> repeated.Numbers:
    """Combine the single systems of one random start with the report's coefficients."""
    config, flags = RECIPES[name].config, SCALES[scale]
    out = repeated.folder(given.out, "-".join([name, *(flag.strip("-") for flag in flags)]), seed)
    members = [str(repeated.folder(given.out, member, seed)) for member in config.members]
    weights = map(str, config.ensemble.weights)
    dispatch(["ensemble", *members, "--out", str(out), "--weights", *weights, *flags])
    return repeated.numbers(out)


def search(name: str, seed: int, given: argparse.Namespace) -> list[float]:
    """Return the coefficients of SINGLES that are best on our scores and labels."""
    out, used = repeated.folder(given.out, f"{name}-searched", seed), SEARCHED[name]
    members = [str(repeated.folder(given.out, SINGLES[i], seed)) for i in used]
    dispatch(["ensemble", *members, "--out", str(out), "--search"])
    found = dict(zip(used, json.loads((out / "ensemble.json").read_text())["weights"], strict=True))
    return [round(found.get(i, 0.0), 3) for i in range(len(SINGLES))]


def counts(given: argparse.Namespace, system: str) -> tuple[str, str]:
    """Return all and trained parameters, in millions."""
    weights = repeated.replacements(given)
    bases = [params.load(find(weights[n]))[0] for n in RECIPES[system].config.backbones]
    trained, _ = params.load(repeated.folder(given.out, system, 0) / MODEL)
    trained = {n: v for n, v in trained.items() if not n.endswith((".mean", ".var"))}
    every = named(bases) | trained
    return tuple(f"{sum(v.size for v in x.values()) / 1e6:.2f}M" for x in (every, trained))


def hide(data: Path, machines: Sequence[str], out: Path) -> Path:
    """Link the recordings into a folder of `out`, those of some machines without attributes."""
    out = out / "-".join(["data-without", *sorted(machines)])
    for path in sorted(data.rglob("*.wav")):
        machine, split = path.parts[-3:-1]
        kept = path.stem.split("_")[:6]  # section_00_source_train_normal_0000
        name = "_".join([*kept, "noAttribute"]) + ".wav" if machine in machines else path.name
        link = out / machine / split / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    return out


def tiny_backbones(given: argparse.Namespace) -> list[str]:
    """Write small backbones with random weights: they show that all runs, and nothing else.

    Returns:
      A file in place of each backbone of the systems asked for.
    """
    small = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48}
    small |= {"encoder_attention_heads": 2, "embed_dim": 16, "conv_pos": 16, "conv_pos_groups": 2}
    beats, eat = BeatsConfig.base(**small), EatConfig.base(embed_dim=32, depth=2, num_heads=2)
    paths = []
    for name in repeated.backbones(given):
        kind = CHECKPOINTS[name].kind
        structure, path = {"beats": beats, "eat": eat}[kind], given.out / f"tiny-{kind}.safetensors"
        params.save(path, backbone.initialize(structure), params.Header(kind, asdict(structure)))
        paths.append(str(path))
    return paths


def tiny_fields(system: str) -> list[str]:
    """Return fields of a recipe that make its training short."""
    fields = ["--audio.seconds", "6", "--train.steps", "60", "--train.batch", "16"]
    fields += ["--train.accumulate", "1", "--train.log-every", "20"]
    fields += ["--train.optimizer.schedule.warmup", "6"]
    for i, branch in enumerate(RECIPES[system].config.embedder.branches):
        fields += [f"--embedder.branches.{i}.adapter.rank", "4"] if branch.adapter else []
    return fields


if __name__ == "__main__":
    main()
