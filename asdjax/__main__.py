"""The `asdjax` command line: parses, calls the stages, turns a user's mistake into one message."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json as jsons
import shutil
import signal
import sys
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from asdjax import arguments, devices
from asdjax.compiled import keep_compiled
from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.data import archives, audio, dcase, download, healthy, remarks, stream, synthetic
from asdjax.data.batches import Audio
from asdjax.detector import fitting
from asdjax.detector import update as updating
from asdjax.detector import watch as watches
from asdjax.detector.detector import Detector
from asdjax.detector.fitting import Alarms
from asdjax.files import atomic
from asdjax.models import checkpoints
from asdjax.recipes import RECIPES, listing
from asdjax.report import console
from asdjax.scoring.clusters import Pseudo
from asdjax.scoring.combine import Ensemble
from asdjax.scoring.minimum import Minimum
from asdjax.stages import compare as comparing
from asdjax.stages import ensemble as combining
from asdjax.stages import folder, lock, pseudo_labels, recordings, stages
from asdjax.stages import search as searching
from asdjax.train.interrupt import TERMINATED
from asdjax.types import InputError, counted
from asdjax.version import __version__

NO_CACHE = "--no-cache"  # of every command: keep no compiled programs for later calls
INTERRUPTED = "interrupted; what is finished is kept: give the same command to continue"


def quickstart(out: Path = Path("asdjax-quickstart")) -> None:
    """Make synthetic machines, train small/dual on them, compare it with frozen/logmel.

    Args:
      out: where the recordings and both runs go.
    """
    data = synthetic.make(out / "data")
    folders = {"frozen/logmel": out / "frozen", "small/dual": out / "run"}
    runs = {name: stages.run(RECIPES[name].config, data, to) for name, to in folders.items()}
    console.comparison_table(runs, f"synthetic machines in {data}")


def run(given: arguments.Arguments) -> None:
    """Run a system on recordings: train (if it trains), embed, score, evaluate, plot."""
    _join(given)
    if not isinstance(given.config, EnsembleConfig):
        stages.run(given.config, given.places["data"], given.places["out"], **given.options)
        return
    out = given.places["out"]
    combining.refuse_run(out)
    folders = {name: (given.places["runs"] or out / "members") / name for name in given.members}
    members = {}
    for i, (name, system) in enumerate(given.members.items()):
        reported = RECIPES[name].reported
        reported = reported if i == 0 else replace(reported, machines=0)  # told once
        others = tuple(path for other, path in folders.items() if other != name)
        own = given.options | {"reuse": others, "reported": reported}
        members[name] = system, folders[name], own
    with stages.opened(out), audio.kept_in_memory():
        stages.run_members(members, given.places["data"])
        if devices.leads():
            runs = list(folders.values())
            combining.combine_members(runs, given.config.ensemble, out, given.options["force"])


def train(given: arguments.Arguments) -> None:
    """Only train: adapt the encoders of a system to the machines; a stopped training is resumed."""
    _join(given)
    stages.train(given.config, given.places["data"], given.places["out"], **given.options)


def _join(given: arguments.Arguments) -> None:
    if given.places.get("distributed"):
        devices.join_processes()


def embed(given: arguments.Arguments) -> None:
    """Only embed: one file of embeddings per machine, of a system that is trained or frozen."""
    _join(given)
    stages.embed(given.config, given.places["data"], given.places["out"], **given.options)


def fit(args: list[str]) -> None:
    """Learn how healthy machines sound: folders or files of recordings in, one detector out."""
    sources, given = arguments.parse_fit(args, fitting.RECIPE)
    out, skip_bad = given.places["out"], given.options["skip_bad"]
    if out.is_dir():
        raise InputError(f"{out}: expected a file for the detector, got a folder")
    alarms = Alarms(**{f.name: given.places[f.name] for f in dataclasses.fields(Alarms)})
    work = out.with_name(f"{out.name}.fit")  # what is finished, if this is interrupted
    fitting.fit(sources, given.config, alarms, work, skip_bad).save(out)
    shutil.rmtree(work)
    console.note(f"detector: {out}; score recordings with `asdjax detect {out} FILES`")


def export(
    run: Positional[Path], out: Path, alarms: Annotated[Alarms, tyro.conf.arg(name="")]
) -> None:
    """Make a detector of a finished run.

    Args:
      run: the run's folder.
      out: the detector's file.
      alarms: when it raises an alarm.
    """
    fitting.of_run(run, alarms).save(out)
    console.note(f"detector: {out}")


def update(
    detector: Positional[Path],
    sounds: Positional[tuple[Path, ...]],
    machine: str = "",
    retire: str = "",
    most: int = updating.MOST,
    skip_bad: bool = False,
) -> None:
    """Add healthy recordings to a detector, without training; the file before is kept.

    Args:
      detector: a file of `asdjax fit`.
      sounds: recordings, or folders of them at any depth.
      machine: whose they are, where the detector knows several and no folder is called so.
      retire: YYYY-MM-DD: leave out clips that were recorded before.
      most: clips of a machine that are kept; of more, those that cover all others best.
      skip_bad: leave broken files out instead of stopping.
    """
    made, lines = updating.update(Detector.load(detector), sounds, machine, retire, most, skip_bad)
    numbers = itertools.count(1)
    before = next(p for n in numbers if not (p := Path(f"{detector}.{n}")).exists())
    with atomic(before) as temporary:
        shutil.copyfile(detector, temporary)
    made.save(detector)
    for line in lines:
        console.note(line)
    console.note(f"detector: {detector}; before: {before}")


def detect(
    detector: Positional[Path],
    sounds: Positional[tuple[Path, ...]],
    machine: str = "",
    skip_bad: bool = False,
    json: bool = False,
) -> None:
    """Score recordings by a detector, each against its threshold.

    Args:
      detector: a file of `asdjax fit`.
      sounds: recordings, or folders of them at any depth.
      machine: whose they are, where the detector knows several and no folder is called so.
      skip_bad: leave broken files out instead of stopping.
      json: a line of JSON for each file in place of the table.
    """
    paths, made = list(healthy.recordings(sounds)), Detector.load(detector)
    with console.progress("scoring", len(paths)) as advance:
        judged = made.judge_files(paths, machine, skip_bad, advance)
    for line in judged.lines:
        console.note(line)
    for path, reason in judged.broken.items():
        console.note(f"left out: {path}: {reason}")
    if json:
        for one in judged.verdicts:
            print(jsons.dumps(dataclasses.asdict(one) | {"above": one.above}))
    else:
        columns = ("file", "machine", "score", "threshold", "nearest")
        console.verdicts_table([[getattr(v, n) for n in columns] for v in judged.verdicts])


def watch(
    detector: Positional[Path],
    source: Positional[str],
    state: Path | None = None,
    window: float | None = None,
    hop: float | None = None,
    machine: str = "",
    once: bool = False,
    rate: int = 16000,
    channels: int = 1,
    format: stream.Format = "s16",
) -> None:
    """Watch a folder that fills, a recording, or raw PCM: a line of JSON for each window and event.

    Args:
      detector: a file of `asdjax fit`.
      source: a folder, a recording, or - for PCM on standard input.
      state: a folder for the log and for what was read; None: DETECTOR.watch.
      window: seconds; None: as the clips that the detector was fitted to.
      hop: seconds from one window to the next; None: a window.
      machine: whose sound it is, where the detector knows several and no folder is called so.
      once: of a folder only what is there and complete.
      rate: of PCM, in Hz.
      channels: of PCM.
      format: of PCM, little-endian; f32 has full scale 1.
    """
    state = state or detector.with_name(f"{detector.name}.watch")
    with lock.locked(state):
        watching = watches.Watch(detector, state)
        if source == "-":
            whose = watching.detector.named(machine)
            pcm = rate, channels, format
            watches.watch_stream(watching, sys.stdin.buffer, whose, *pcm, window, hop)
            return
        if not Path(source).exists():
            raise InputError(f"{source}: no such folder or file")
        filling = watches.Folder(Path(source), watching, window, hop, machine)
        watches.watch_folder(filling, once or filling.only is not None)


def score(args: list[str]) -> None:
    """Compute anomaly scores from a run's embeddings, optionally with another scorer."""
    scorers = typing.get_args(typing.get_type_hints(SystemConfig)["scorer"])
    kinds = {kind.__name__.lower(): kind for kind in scorers}
    run, *rest = args or [""]
    system = folder.load(Path(run)).system if (Path(run) / "config.json").is_file() else None
    if system is not None:
        kinds = {name: kind for name, kind in kinds.items() if system.takes(kind)}
    asked = run in ("-h", "--help") or rest[:1] in (["-h"], ["--help"])
    if asked or not run or run.startswith("-") or (rest and rest[0] not in kinds):
        unknown = f"this run has no scorer {rest[0]!r}\n" if rest and not asked else ""
        lines = [
            f"{unknown}usage: asdjax score RUN [SCORER [OPTIONS]]; without SCORER the run's own:"
        ]
        lines += [f"  {name:16}{kind.__doc__.splitlines()[0]}" for name, kind in kinds.items()]
        lines += ["`asdjax score RUN SCORER --help` lists its options"]
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    scorer = None
    if rest:
        kind = kinds[rest[0]]
        scorer = tyro.cli(
            kind,
            prog=f"asdjax score RUN {rest[0]}",
            args=rest[1:],
            default=kind(),
            config=(tyro.conf.AvoidSubcommands,) if kind is Minimum else (),
        )
    stages.score(Path(run), scorer)


def report(run: Positional[Path]) -> None:
    """Write results.csv, table and figures from a run's scores."""
    stages.report(run)


def ensemble(
    runs: Positional[tuple[Path, ...]],
    out: Path,
    config: Annotated[Ensemble, tyro.conf.arg(name="")],
    force: bool = False,
) -> None:
    """Combine the scores of several runs into those of one system.

    Args:
      runs: folders of finished runs on the same recordings, also of ensembles or with score files
        of any system; one of them is a run. Score files need those of training clips beside them
        (leave_one_out_<machine>_section_00_train.csv), or --transductive.
      out: the ensemble's own folder.
      config: how to combine.
      force: combine again what is already there.
    """
    combining.ensemble(runs, config, out, force)


def compare(runs: Positional[tuple[Path, ...]], out: Path | None = None, times: int = 2000) -> None:
    """Compare the official scores of several runs, per machine, with intervals over clips.

    Args:
      runs: two or more folders on the same recordings: of runs, of ensembles, or with score files
        of any system; at least one of a run. Differences are from the first.
      out: also write the comparison to this csv.
      times: how often clips are drawn for the intervals.
    """
    comparing.compare(runs, out, times)


def pseudo(
    run: Positional[Path],
    config: Annotated[Pseudo, tyro.conf.arg(name="")],
    out: Path | None = None,
) -> None:
    """Cluster a run's training clips without attributes: pseudo labels, and figures of them.

    Args:
      run: a run's folder.
      config: the method and the numbers of clusters.
      out: gets labels.csv and a figure per machine; None: RUN/pseudo.
    """
    pseudo_labels.cluster_run(run, config, out)


def search(
    runs: Positional[tuple[Path, ...]], labels: bool = False, out: Path | None = None
) -> None:
    """Score the embeddings of a run in many ways and rank these, without its encoder.

    Args:
      runs: folders of runs of one system, such as on several years: ranked by the mean over them.
      labels: rank by the official score, on the labels of the test clips; else by how alike source
        and target training clips score, left out of what they are compared with.
      out: the csv that gets all ways; None: search.csv in the first run.
    """
    searching.search(runs, labels, out)


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
    metrics = stages.evaluate(scores, data, ground_truth, year, out)
    console.results_table(metrics, str(scores))


def recipes(text: Positional[str] = "") -> None:
    """List the recipes with their numbers, those with some text in them, or everything about one.

    Args:
      text: a recipe's name, or a part of names and summaries.
    """
    print(listing.details(text) if text in RECIPES else listing.overview(text))


def data_list(directory: Positional[Path], ground_truth: Path | None = None) -> None:
    """List machines and clips of a folder; reads only the headers of the files.

    Args:
      directory: the recordings.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
    """
    _inspect(directory, ground_truth, None, decode=False)


def data_verify(
    directory: Positional[Path],
    ground_truth: Path | None = None,
    channel: Annotated[int | Literal["mean"] | None, tyro.conf.arg(name="audio.channel")] = None,
) -> None:
    """Check a folder: list machines and clips, decode every file, report broken ones.

    Args:
      directory: the recordings.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
      channel: the one of each file that is used; as of a run.
    """
    _inspect(directory, ground_truth, channel, decode=True)


def _inspect(
    directory: Path, ground_truth: Path | None, channel: audio.Channel | None, decode: bool
) -> None:
    dataset = dcase.scan(directory, ground_truth)
    clips, channel = dataset.clips, recordings.channel(Audio(channel=channel), dataset)
    paths = [clip.path for clip in clips]
    with console.progress("reading", len(clips), "files") as advance:
        if decode:
            infos, problems = audio.verify(paths, channel, advance=advance)
        else:
            infos, problems = audio.probe_all(paths, advance)
    console.data_table(dcase.summarize(dataset, infos), str(directory))
    for line in (*dataset.notes, *remarks.formats(clips, infos, channel)):
        console.note(line)
    recordings.refuse_broken(problems, len(clips))
    if decode:
        odd = remarks.unlike_lines(clips, remarks.unlike_training(clips, infos))
        for line in (*remarks.once(clips, infos)[1], *odd):
            console.note(line)
        tested = {clip.group for clip in clips if clip.split == "test"}
        for group in sorted({clip.group for clip in clips} - tested):
            console.note(f"{'/'.join(group)}: no test clip, which a run needs")
        console.note(f"{counted(len(clips), 'file')}, none broken")


def data_fetch(
    year: int,
    part: download.Part,
    out: Path,
    machines: tuple[str, ...] = (),
    mirror: str = "https://zenodo.org",
) -> None:
    """Download, verify and unpack the recordings of an edition; resumes.

    Args:
      year: 2020 to 2026.
      part: dev; eval for the additional training and the evaluation test sets; all for both, on
        which most reports train.
      out: the recordings go to OUT/dcase<year>t2/<part>_data/raw.
      machines: machine types; none for all.
      mirror: a server with Zenodo's paths.
    """
    raw = download.fetch(year, part, out, machines, mirror)
    console.note(f"recordings: {raw}")
    if part != "dev":
        console.note(f"labels (licence of their own): {archives.EVALUATORS[year]}")


def weights_list() -> None:
    """List the public checkpoints and whether they are in the cache."""
    for name, checkpoint in checkpoints.CHECKPOINTS.items():
        state = checkpoints.cached(name) if checkpoints.cached(name).is_file() else "not fetched"
        print(f"{name:40}{checkpoint.file:52}{state}")


def weights_fetch(
    name: Positional[str],
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    without_head: bool = False,
) -> None:
    """Download a public checkpoint, convert it and put it into the cache.

    Args:
      name: as in `asdjax weights list`.
      source: the original file, or a speech model's folder, on disk, in place of the download.
      without_head: of a speech model: leave out the head that it was fine-tuned with.
    """
    from weights_convert.fetch import fetch

    with download.progress_bars() as bars:
        task = bars.add_task(name, total=None)
        path = fetch(
            name,
            source,
            without_head=without_head,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    console.note(f"weights: {path}")


COMMANDS: dict[str, Callable] = {
    "quickstart": quickstart,
    "fit": fit,
    "detect": detect,
    "watch": watch,
    "update": update,
    "export": export,
    "run": run,
    "train": train,
    "embed": embed,
    "score": score,
    "report": report,
    "ensemble": ensemble,
    "compare": compare,
    "search": search,
    "pseudo": pseudo,
    "evaluate": evaluate,
    "recipes": recipes,
    "data list": data_list,
    "data verify": data_verify,
    "data fetch": data_fetch,
    "weights list": weights_list,
    "weights fetch": weights_fetch,
}
COMPILE = (quickstart, fit, detect, watch, update, run, train, embed, score, search, pseudo)


def main() -> None:
    """Run the command line; exit with 1 for a mistake in the input (one message), 2 in the command.

    Ctrl-C, SIGTERM and a closed pipe end the process by their signal: 130, 143, 141 in a shell.
    """
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):  # file names need not be UTF-8
            output.reconfigure(errors="backslashreplace", line_buffering=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        dispatch(sys.argv[1:])
    except InputError as error:
        sys.exit(f"asdjax: {error}")
    except BrokenPipeError:  # such as `head` has read enough
        _end_by(getattr(signal, "SIGPIPE", signal.SIGTERM))  # Windows has none
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"asdjax: {error.strerror or error}{where}; finished files are kept")
    except KeyboardInterrupt as interrupted:
        console.note(INTERRUPTED)
        _end_by(*interrupted.args or (signal.SIGINT,))
    except SystemExit as left:
        if left.code == TERMINATED and devices.leads():  # a training that is saved
            console.note(INTERRUPTED)
        raise


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def _end_by(number: int) -> None:
    """End as a signal ends a program; an orderly exit would first compute what the device has."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def dispatch(args: list[str]) -> None:
    """Call the command that the first one or two words name."""
    name = next((" ".join(args[:n]) for n in (2, 1) if " ".join(args[:n]) in COMMANDS), None)
    if name is None:
        _help(args)
    command, rest = COMMANDS[name], args[len(name.split()) :]
    if NO_CACHE in rest:
        rest = [word for word in rest if word != NO_CACHE]
    elif command in COMPILE and (reason := keep_compiled()):
        console.note(reason)
    if command in (run, train, embed):
        command(arguments.parse(name, rest))
    elif command in (fit, score):
        command(rest)
    else:
        tyro.cli(command, prog=f"asdjax {name}", args=rest)


def _help(args: list[str]) -> None:
    """Print the commands and exit: with 0 if that was asked for."""
    if args == ["--version"]:
        print(__version__)
        sys.exit(0)
    first = f"{args[0]} " if args else ""
    group = first if any(name.startswith(first) for name in COMMANDS) else ""
    asked = not args or args[bool(group) :] in (["-h"], ["--help"])
    lines = [] if asked else [f"unknown command {' '.join(args[:2])!r}; there are:"]
    lines += [
        f"  {name:16}{command.__doc__.splitlines()[0]}"
        for name, command in COMMANDS.items()
        if name.startswith(group)
    ]
    usage = [
        f"asdjax {__version__}",
        "usage: asdjax COMMAND [OPTIONS]; `asdjax COMMAND --help` tells more",
        f"every command takes {NO_CACHE}: it keeps no compiled programs for later calls",
    ]
    print("\n".join([*usage, *lines]), file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


if __name__ == "__main__":
    main()
