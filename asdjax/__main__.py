"""The `asdjax` command line: parses, calls the stages, turns a user's mistake into one message."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from asdjax import arguments, devices, embedding, pipeline, weights
from asdjax.arguments import EnsembleArguments, RunArguments, TrainArguments
from asdjax.data import archives, audio, dcase, decode, download, fetch, inspect, synthetic
from asdjax.ensemble import ensemble as combine
from asdjax.ensemble import refuse_run
from asdjax.pseudo import cluster_run
from asdjax.recipes import RECIPES
from asdjax.report import console
from asdjax.scoring.ensemble import Ensemble
from asdjax.scoring.pseudo import Pseudo
from asdjax.scoring.score import SCORERS
from asdjax.types import InputError
from asdjax.version import __version__


def quickstart(out: Path = Path("asdjax-quickstart")) -> None:
    """Make synthetic machines, train small/dual on them, print its numbers and frozen/logmel's.

    Args:
      out: where the recordings and both runs go.
    """
    data = synthetic.make(out / "data")
    folders = {"frozen/logmel": out / "frozen", "small/dual": out / "run"}
    runs = {name: pipeline.run(RECIPES[name].config, data, to) for name, to in folders.items()}
    console.comparison_table(runs, f"made machines in {data}")


def run(given: RunArguments | EnsembleArguments) -> None:
    """Recordings in; scores, official numbers and figures out; trains first what has to be."""
    if isinstance(given, EnsembleArguments):
        run_ensemble(given)
    else:
        pipeline.run(*arguments.stage(given), **arguments.options(given))


def run_ensemble(given: EnsembleArguments) -> None:
    """Run every member that is not finished, then combine them."""
    refuse_run(given.out)
    systems, folder = arguments.members(given), given.runs or given.out / "members"
    told = ("year", "ground_truth", "skip_bad", "force")
    options = {name: getattr(given, name) for name in told}
    with decode.kept_in_memory():
        for name, system in systems.items():
            console.note(f"member {name}")
            others = tuple(folder / other for other in systems if other != name)
            own = {"reuse": others, "reported": RECIPES[name].parameters}
            pipeline.run(system, given.data, folder / name, **own, **options)
    runs = [folder / name for name in systems]
    combine(runs, given.config.ensemble, given.out, given.force)


def train(given: TrainArguments) -> None:
    """The stage of `run` before `embed`: adapt a backbone to the machines; goes on if stopped."""
    if given.distributed:
        devices.join_processes()
    pipeline.train(*arguments.stage(given), **arguments.options(given))


def embed(given: RunArguments) -> None:
    """The stage of `run` before `score`: one file of embeddings per machine."""
    pipeline.embed(*arguments.stage(given), **arguments.options(given))


def score(
    run: Positional[Path],
    scorer: Literal[*SCORERS] | None = None,
    k: int | None = None,
    banks: Literal["pooled", "domain"] | None = None,
    standardize: bool | None = None,
    count: int | None = None,
    starts: int | None = None,
    components: int | None = None,
    covariance: Literal["full", "diagonal"] | None = None,
    floor: float | None = None,
    seed: int | None = None,
    kind: Literal["mse", "mahalanobis"] | None = None,
) -> None:
    """The second stage: score files from a run's embeddings.

    What is given replaces the run's own setting and is recorded there. The embeddings stay.

    Args:
      run: a run's folder.
      scorer: another back end, with its usual settings: nearest clips; nearest of the centers of
        source clips and all target clips; Gaussian mixture; Mahalanobis distance.
      k: (knn) neighbors averaged.
      banks: (knn, mahalanobis) all training clips together, or the nearer of the two domains.
      standardize: (knn) by mean and deviation of the machine's training clips.
      count: (centers) how many of the source clips.
      starts: (centers) of k-means, of which the best is kept.
      components: (mixture) Gaussians.
      covariance: (mixture) of each of them.
      floor: (mixture) added to the variances of unit-length embeddings.
      seed: (centers, mixture) of the starts.
      kind: (autoencoders) which of their two scores.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    pipeline.score(given.pop("run"), **given)


def report(run: Positional[Path]) -> None:
    """The last stage: table, results.csv and figures from a run's scores."""
    pipeline.report(run)


def ensemble(
    runs: Positional[tuple[Path, ...]],
    out: Path,
    config: Annotated[Ensemble, tyro.conf.arg(name="")],
    force: bool = False,
) -> None:
    """Score files, table and results.csv from the scores of several runs.

    Args:
      runs: folders of finished runs on the same recordings.
      out: the ensemble's own folder.
      config: how to combine.
      force: combine again what is already there.
    """
    combine(runs, config, out, force)


def pseudo(
    run: Positional[Path],
    config: Annotated[Pseudo, tyro.conf.arg(name="")],
    out: Path | None = None,
) -> None:
    """Labels of training clips without attributes: clusters of a run's embeddings, and figures.

    Args:
      run: a run's folder.
      config: the method and the numbers of clusters.
      out: gets labels.csv and a figure per machine; None: RUN/pseudo.
    """
    cluster_run(run, config, out)


def evaluate(
    scores: Positional[Path],
    data: Path | None = None,
    ground_truth: Path | None = None,
    year: int | None = None,
    out: Path | None = None,
) -> None:
    """Print the official numbers of any system's score files.

    Args:
      scores: a folder with anomaly_score_*.csv and decision_result_*.csv.
      data: the labelled recordings, or
      ground_truth: the labels as the official evaluators publish them.
      year: the edition whose rules apply, where the data do not tell.
      out: also write machine,metric,value to this csv.
    """
    metrics = pipeline.evaluate(scores, data, ground_truth, year, out)
    console.results_table(metrics, str(scores))


def recipes() -> None:
    """List the recipes with their sources and published numbers."""
    for name, recipe in RECIPES.items():
        print(f"{name}: {recipe.summary}")
        for heading in ("source", "stated", "published", "chosen", "parameters"):
            if text := getattr(recipe, heading):
                print(f"    {heading:12}{text}")


def data_list(directory: Positional[Path], ground_truth: Path | None = None) -> None:
    """Print what a folder holds, per machine; reads only headers.

    Args:
      directory: the recordings.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
    """
    _inspect(directory, ground_truth, audio.probe_all)


def data_verify(directory: Positional[Path], ground_truth: Path | None = None) -> None:
    """The same, and decode every file to find broken ones.

    Args:
      directory: the recordings.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
    """
    _inspect(directory, ground_truth, partial(audio.verify, channel=0))


def _inspect(directory: Path, ground_truth: Path | None, read: Callable) -> None:
    dataset = dcase.scan(directory, ground_truth)
    with console.progress("reading", len(dataset.clips), "files") as advance:
        infos, problems = read([clip.path for clip in dataset.clips], advance=advance)
    console.data_table(inspect.summarize(dataset, infos), str(directory))
    for line in audio.notes(dataset.clips, infos, channel=0):
        console.note(line)
    embedding.refuse_broken(problems, len(dataset.clips))


def data_fetch(
    year: int,
    part: Literal["dev", "eval"],
    out: Path,
    machines: tuple[str, ...] = (),
    mirror: str = "https://zenodo.org",
) -> None:
    """Download, verify and unpack the recordings of an edition; resumes.

    Args:
      year: 2020 to 2026.
      part: dev, or eval for the additional training and the evaluation test sets.
      out: the recordings go to OUT/dcase<year>t2/<part>_data/raw.
      machines: machine types; none for all.
      mirror: a server with Zenodo's paths.
    """
    raw = fetch.fetch(year, part, out, machines, mirror)
    console.note(f"recordings: {raw}")
    if part == "eval":
        console.note(f"labels (licence of their own): {archives.EVALUATORS[year]}")


def weights_list() -> None:
    """List the public checkpoints and whether they are in the cache."""
    for name, checkpoint in weights.CHECKPOINTS.items():
        state = weights.cached(name) if weights.cached(name).is_file() else "not fetched"
        print(f"{name:40}{checkpoint.file:52}{state}")


def weights_fetch(
    name: Positional[str], source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
) -> None:
    """Download a public checkpoint, convert it and put it into the cache.

    Args:
      name: as in `asdjax weights list`.
      source: the original file on disk, in place of the download.
    """
    with download.progress_bars() as bars:
        task = bars.add_task(name, total=None)
        path = weights.fetch(
            name,
            source,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    console.note(f"weights: {path}")


COMMANDS: dict[str, Callable] = {
    "quickstart": quickstart,
    "run": run,
    "train": train,
    "embed": embed,
    "score": score,
    "report": report,
    "ensemble": ensemble,
    "pseudo": pseudo,
    "evaluate": evaluate,
    "recipes": recipes,
    "data list": data_list,
    "data verify": data_verify,
    "data fetch": data_fetch,
    "weights list": weights_list,
    "weights fetch": weights_fetch,
}


def main() -> None:
    """Run the command line; exit with 1 for a mistake in the input (one message), 2 in the command.

    Ctrl-C ends the process by its signal, 130 in a shell.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        dispatch(sys.argv[1:])
    except InputError as error:
        sys.exit(f"asdjax: {error}")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"asdjax: {error.strerror or error}{where}; finished files are kept")
    except KeyboardInterrupt:
        console.note("interrupted; what is finished is kept: give the same command to go on")
        # An orderly exit would first compute the batches that the device already has.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def dispatch(args: list[str]) -> None:
    """Call the command that the first one or two words name."""
    name = next((" ".join(args[:n]) for n in (2, 1) if " ".join(args[:n]) in COMMANDS), None)
    if name is None:
        _help(args)
    command, rest = COMMANDS[name], args[len(name.split()) :]
    if command in (run, train, embed):
        command(arguments.parse(name, rest))
    else:
        tyro.cli(command, prog=f"asdjax {name}", args=rest)


def _help(args: list[str]) -> None:
    """Print the commands and exit: with 0 if that was asked for."""
    if args == ["--version"]:
        print(__version__)
        sys.exit(0)
    asked = args in ([], ["-h"], ["--help"])
    lines = [f"{name:16}{command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    if not asked:
        lines.insert(0, f"unknown command {' '.join(args[:2])!r}; there are:")
    print("\n  ".join([f"asdjax {__version__}", *lines]), file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


if __name__ == "__main__":
    main()
