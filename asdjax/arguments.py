"""What `run`, `train` and `embed` take on the command line: a recipe and all of its fields."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.options import Options
from asdjax.params import read_header
from asdjax.recipes import RECIPES
from asdjax.report import console
from asdjax.types import InputError
from asdjax.weights import CHECKPOINTS, find


@dataclass(frozen=True)
class RunArguments:
    """A recipe, where its recordings are and where its results go.

    Args:
      data: the recordings: a DCASE Task 2 part of any year, or your own <machine>/train and
        <machine>/test.
      out: the run's folder.
      system: the recipe; every field can be changed.
      weights: names or converted files of the backbones, in place of the recipe's and in their
        order.
      year: the edition whose rules apply, where the data do not tell.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
      skip_bad: leave broken files out and list them, instead of stopping.
      force: train and embed again what is already there.
      reuse: folders of other runs, whose training or embeddings are taken where they are exactly
        those needed here.
      pseudo_labels: labels.csv of `asdjax pseudo` or of another run, for training clips without
        attributes.
    """

    data: Path
    out: Path
    recipe: tyro.conf.Suppress[str]
    system: Annotated[SystemConfig, tyro.conf.arg(name="")]
    weights: tuple[str, ...] = ()
    year: int | None = None
    ground_truth: Path | None = None
    skip_bad: bool = False
    force: bool = False
    reuse: tuple[Path, ...] = ()
    pseudo_labels: Path | None = None


@dataclass(frozen=True)
class EnsembleArguments:
    """An ensemble of recipes, where the recordings are and where the results go.

    Args:
      data: as for a single recipe.
      out: the ensemble's folder.
      config: the members and how they are combined.
      weights: names or converted files of all members' backbones, in place of the recipes' and in
        their order.
      runs: gets a folder for each member; what is finished there is kept. None: OUT/members.
      year: the edition whose rules apply, where the data do not tell.
      ground_truth: labels of an evaluation set, as the official evaluators publish them.
      skip_bad: leave broken files out and list them, instead of stopping.
      force: train, embed and combine again what is already there.
    """

    data: Path
    out: Path
    config: Annotated[EnsembleConfig, tyro.conf.arg(name="")]
    weights: tuple[str, ...] = ()
    runs: Path | None = None
    year: int | None = None
    ground_truth: Path | None = None
    skip_bad: bool = False
    force: bool = False


@dataclass(frozen=True)
class TrainArguments(RunArguments):
    """A recipe, where its recordings are and where its results go.

    Args:
      distributed: train with several processes, one on each host; give the same command on all. On
        Slurm, Open MPI, Kubernetes and TPU pods they find each other; elsewhere set
        JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID. All
        need the same --data and --out.
    """

    distributed: bool = False


def parse(name: str, args: list[str]) -> RunArguments | EnsembleArguments:
    """Return what the words after `run`, `train` or `embed` say; exit where no recipe is named.

    Raises:
      InputError: `train` or `embed` of an ensemble.
    """
    recipe = RECIPES.get(args[0]) if args else None
    if recipe is None:
        asked = args[:1] in (["-h"], ["--help"])
        unknown = f"unknown recipe {args[0]!r}\n" if args and not asked else ""
        usage = f"{unknown}usage: asdjax {name} RECIPE --data DIR --out RUN; recipes:"
        console.note("\n  ".join([usage, *RECIPES]))
        sys.exit(0 if asked else 2)
    kind, own = (TrainArguments if name == "train" else RunArguments), (args[0], recipe.config)
    if isinstance(recipe.config, EnsembleConfig):
        if name != "run":
            raise InputError(f"{args[0]} is an ensemble; `{name}` takes one of its members")
        kind, own = EnsembleArguments, (recipe.config,)
    return tyro.cli(
        kind,
        default=kind(tyro.MISSING, tyro.MISSING, *own),
        prog=f"asdjax {name} {args[0]}",
        args=args[1:],
        config=(tyro.conf.AvoidSubcommands,),
    )


def stage(given: RunArguments) -> tuple[SystemConfig, Path, Path]:
    """Return the system with the weights asked for, its recordings and its folder."""
    system = given.system.with_backbones(backbones([given.system], given.weights))
    return system, given.data, given.out


def options(given: RunArguments) -> dict[str, object]:
    """Return the fields of `Options`."""
    names = {f.name for f in fields(Options)} - {"reported"}
    told = {name: getattr(given, name) for name in names}
    return told | {"reported": RECIPES[given.recipe].parameters}


def members(given: EnsembleArguments) -> dict[str, SystemConfig]:
    """Return the systems of an ensemble's members by name, with the weights asked for.

    Raises:
      InputError: names of no single system; weights that are not there, before hours of training.
    """
    known = {name: r.config for name, r in RECIPES.items() if isinstance(r.config, SystemConfig)}
    if unknown := [name for name in given.config.members if name not in known]:
        raise InputError(
            f"--members: expected recipes of single systems, got {', '.join(unknown)}; "
            f"there are {', '.join(known)}"
        )
    systems = {name: known[name] for name in given.config.members}
    others = backbones(systems.values(), given.weights)
    systems = {name: system.with_backbones(others) for name, system in systems.items()}
    for name in dict.fromkeys(n for system in systems.values() for n in system.backbones):
        read_header(find(name))
    return systems


def backbones(systems: Iterable[SystemConfig], weights: Sequence[str]) -> dict[str, str]:
    """Return what stands in place of the weights that systems name, in order of first mention.

    Raises:
      InputError: another number of weights was given, or those of another kind of backbone.
    """
    named = dict.fromkeys(name for system in systems for name in system.backbones)
    if weights and len(weights) != len(named):
        wanted = ", ".join(named) or "nothing: this system has no weights"
        raise InputError(f"--weights: expected a file in place of {wanted}; got {len(weights)}")
    others = dict(zip(named, weights, strict=False))
    for name, other in others.items():
        kind = CHECKPOINTS[name].kind if name in CHECKPOINTS else None
        if kind and (got := read_header(find(other)).kind) != kind:
            raise InputError(f"--weights: expected {kind} in place of {name}, got {got}: {other}")
    return others
