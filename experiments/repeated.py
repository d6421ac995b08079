"""Run the recipes of a report from several random starts; print our results beside the published.

    repeated.main(__doc__, "korea2025")

A finished run is kept, and a stopped run continues.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from asdjax.__main__ import dispatch
from asdjax.config import EnsembleConfig
from asdjax.data.audio import kept_in_memory
from asdjax.files import read_csv
from asdjax.models import weights_file
from asdjax.models.backbone import initialize
from asdjax.models.beats import BeatsConfig
from asdjax.models.checkpoints import CHECKPOINTS
from asdjax.models.eat import EatConfig
from asdjax.models.speech import SpeechConfig
from asdjax.models.weights_file import Header
from asdjax.recipes import RECIPES, published
from asdjax.report import console
from asdjax.stages.folder import MODEL
from asdjax.train.config import Train
from asdjax.types import counted

Results = dict[tuple[str, str], float]  # machine and metric -> per cent


def main(doc: str, report: str) -> None:
    """Run all systems of a report and print a table for each.

    Args:
      doc: of the script; its first line becomes the help text.
      report: the first part of the recipes' names.
    """
    options, fields = parse(doc, report)
    results = run_all(options, fields)
    for ensemble in ensembles(report):
        if set(RECIPES[ensemble].config.members) <= set(options.systems):
            results[ensemble] = [combine(ensemble, s, options) for s in range(options.runs)]
    for system, runs in results.items():
        compare(system, runs, options)


def of_report(report: str) -> list[str]:
    """Return the recipes of a report with published results of each machine."""
    names = [name for name in RECIPES if name.startswith(f"{report}/")]
    return [n for n in names if any(map(published.machines, published.tables(n).values()))]


def ensembles(report: str) -> list[str]:
    return [n for n in of_report(report) if isinstance(RECIPES[n].config, EnsembleConfig)]


def singles(report: str) -> list[str]:
    return [n for n in of_report(report) if n not in ensembles(report)]


def parse(doc: str, report: str) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the command line, and its other words: fields of the recipes."""
    systems = singles(report)
    tables = published.tables(systems[0]).items()
    parts = [data for data, table in tables if published.machines(table)]
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        epilog="All other options are fields of the recipes, as in `asdjax run`, for example "
        "--train.steps 1000",
    )
    parser.add_argument("--data", type=Path, required=True, help="the recordings")
    parser.add_argument("--out", type=Path, required=True, help="gets a folder for each run")
    parser.add_argument(
        "--weights", nargs="+", help="names or converted files, in place of the recipes' backbones"
    )
    parser.add_argument("--runs", type=int, default=3, help="random starts of each system")
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument(
        "--part",
        choices=parts,
        default=parts[0],
        required=len(parts) > 1,
        help="whose published results",
    )
    parser.add_argument(
        "--hide", nargs="+", default=[], help="machines to take the attributes from, as in 2024"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a short test: small random backbones, a few steps"
    )
    options, fields = parser.parse_known_args()
    if options.hide:
        options.data = hide(options.data, options.hide, options.out)
    if options.tiny:
        options.runs = 1
        options.weights = options.weights or tiny_backbones(options)
    return options, fields


def run_all(options: argparse.Namespace, fields: Sequence[str]) -> dict[str, list[Results]]:
    """Return the results of each run of each system; `fields` hold for all of them."""
    weights, seeds = replacements(options), range(options.runs)
    results = {}
    with kept_in_memory():
        for system in options.systems:
            own = [*(tiny_fields(system) if options.tiny else []), *fields]
            results[system] = [run(system, seed, options, weights, own) for seed in seeds]
    return results


def backbones(options: argparse.Namespace) -> list[str]:
    """Return the backbones of the systems, in order of first mention."""
    systems = [RECIPES[system].config for system in options.systems]
    return list(dict.fromkeys(name for system in systems for name in system.backbones))


def replacements(options: argparse.Namespace) -> dict[str, str]:
    """Return what stands in place of each backbone of the systems."""
    names = backbones(options)
    if options.weights and len(options.weights) != len(names):
        raise SystemExit(f"--weights: expected one file in place of each of {', '.join(names)}")
    return dict(zip(names, options.weights or names, strict=True))


def folder(out: Path, system: str, seed: int) -> Path:
    return out / system / f"seed{seed}"


def run(
    system: str,
    seed: int,
    options: argparse.Namespace,
    weights: Mapping[str, str],
    fields: Sequence[str],
) -> Results:
    """Train, score and evaluate one system from one random start."""
    out = folder(options.out, system, seed)
    done = (folder(options.out, other, seed) for other in options.systems if other != system)
    reuse = [str(path) for path in done if (path / MODEL).is_file()]
    words = ["run", system, "--data", str(options.data), "--out", str(out)]
    own = [weights[name] for name in RECIPES[system].config.backbones]
    words += ["--weights", *own] if own else []
    words += ["--reuse", *reuse] if reuse else []
    words += ["--train.seed", str(seed)] if RECIPES[system].config.train else []
    dispatch([*words, *fields])
    return read_results(out)


def combine(name: str, seed: int, options: argparse.Namespace, *flags: str) -> Results:
    """Combine the runs of one random start as an ensemble's recipe says."""
    config = RECIPES[name].config
    out = folder(options.out, "-".join([name, *(flag.strip("-") for flag in flags)]), seed)
    members = [str(folder(options.out, member, seed)) for member in config.members]
    weights = map(str, config.ensemble.shares(len(members)))
    how = ["--weights", *weights, "--keep", config.ensemble.keep]
    dispatch(["ensemble", *members, "--out", str(out), *how, *flags])
    return read_results(out)


def read_results(out: Path) -> Results:
    rows = read_csv(out / "results.csv")[1:]
    return {(machine, metric): 100 * float(value) for machine, metric, value in rows}


def machines_of(runs: Sequence[Results]) -> list[str]:
    """Return the machines that have both domains, in the order of the results."""
    return [machine for machine, metric in runs[0] if metric == published.AREAS[0]]


def mean(run: Results, machines: Sequence[str]) -> float:
    """Return the harmonic mean of AUC source, AUC target and pAUC of some machines."""
    return statistics.harmonic_mean([run[m, name] for m in machines for name in published.AREAS])


def spread(values: Sequence[float]) -> str:
    """Return mean and sample deviation over runs."""
    average = f"{statistics.fmean(values):.2f}"
    return f"{average} ± {statistics.stdev(values):.2f}" if len(values) > 1 else average


def shared(machines: Sequence[str], table: published.Table) -> list[str]:
    """Return those of our machines, sections included, that a published table has too."""
    return [machine for machine in machines if machine.split("/")[0] in table]


def published_mean(machines: Sequence[str], table: published.Table) -> str:
    """Return the published harmonic mean over some of our machines; "-" if it has none of them."""
    names = {machine.split("/")[0] for machine in machines}
    some = published.mean({name: table[name] for name in names if name in table})
    if some is None:
        return "-"
    total = published.total(table) if names == published.machines(table).keys() else some
    return f"{total:.2f}" + (f" (rows: {some:.2f})" if f"{total:.2f}" != f"{some:.2f}" else "")


def compare(system: str, runs: Sequence[Results], options: argparse.Namespace) -> None:
    """Print our results of a system beside the published ones.

    The last rows are harmonic means over the machines that both have.
    """
    rows, table = [], published.tables(system)[options.part]
    for machine in machines_of(runs):
        theirs = table.get(machine.split("/")[0], {})  # the same for all sections of a machine
        for name in published.AREAS:
            number = f"{theirs[name]:.2f}" if name in theirs else "-"
            rows.append([machine, name, spread([run[machine, name] for run in runs]), number])
    both = shared(machines_of(runs), table)
    if both:
        ours = spread([mean(run, both) for run in runs])
        names = {machine.split("/")[0] for machine in both}
        for area in published.AREAS:
            means = [statistics.harmonic_mean([run[m, area] for m in both]) for run in runs]
            known = [table[name][area] for name in names if area in table[name]]
            number = f"{statistics.harmonic_mean(known):.2f}" if known else "-"
            rows.append([counted(len(names), "machine"), area, spread(means), number])
        number = published_mean(both, table)
        rows.append([counted(len(names), "machine"), "harmonic mean", ours, number])
    heading = ["machine", "", f"ours, {counted(len(runs), 'run')}", f"published, {options.part}"]
    console.table(heading, rows, f"{system}, {options.data}")


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


def tiny_backbones(options: argparse.Namespace) -> list[str]:
    """Write small backbones with random weights: they show that all runs, and nothing else.

    Returns:
      A file in place of each backbone of the systems.
    """
    small = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48}
    small |= {"encoder_attention_heads": 2, "embed_dim": 16, "conv_pos": 16, "conv_pos_groups": 2}
    beats, eat = BeatsConfig.base(**small), EatConfig.base(embed_dim=32, depth=2, num_heads=2)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16}
    small |= {"num_conv_pos_embedding_groups": 2}
    paths = []
    for name in backbones(options):
        kind = CHECKPOINTS[name].kind
        structure = {"beats": beats, "eat": eat}.get(kind) or SpeechConfig(kind=kind, **small)
        path = options.out / f"tiny-{kind}.safetensors"
        weights_file.save(path, initialize(structure), Header(kind, asdict(structure)))
        paths.append(str(path))
    return paths


def tiny_fields(system: str) -> list[str]:
    """Return fields of a recipe that make its training short."""
    config = RECIPES[system].config
    if not isinstance(config.train, Train):  # autoencoders
        return ["--train.epochs", "2"]
    fields = ["--audio.seconds", "6", "--train.steps", "60", "--train.batch", "16"]
    fields += ["--train.accumulate", "1", "--train.log-every", "20"]
    fields += ["--train.optimizer.schedule.warmup", "6"]
    for i, encoder in enumerate(config.encoders):
        adapted = getattr(encoder, "adapter", None) is not None
        fields += [f"--encoders.{i}.adapter.rank", "4"] if adapted else []
    return fields
