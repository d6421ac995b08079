"""What `run`, `train`, `embed` and `fit` take on the command line: a recipe, options, its fields.

Flags follow from the dataclasses: `Options`, and the recipe's own configuration as it is.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from asdjax.config import EnsembleConfig, SystemConfig
from asdjax.detector.fitting import Alarms
from asdjax.models.checkpoints import CHECKPOINTS, find
from asdjax.models.pooling import Pool
from asdjax.models.weights_file import read_header
from asdjax.recipes import RECIPES
from asdjax.stages.options import Options
from asdjax.train.config import Train
from asdjax.types import InputError

WIDTH = 100
ON = "default: on; this turns it off"
MOST_USED = 10
BANDS = 8  # of poolings by bands, where an encoder has none yet
LAYER = "encoders.0.layer"  # of a system with one backbone it is "layer" on the command line
USED = (  # what people change, most often first; of these a recipe's first ten lead its help
    *("data", "out", "alarms_per_week", "every", "confirm", "cusum", "weights", "layer"),
    *("audio.seconds", "train.steps", "train.epochs"),
    *("train.batch", "train.optimizer.schedule.peak", "train.learning_rate", "train.seed"),
    *("scorer.k", "scorer.count", "scorer.components", "scorer.kind"),
    *("force", "skip_bad", "reuse", "batch"),
)


@dataclass(frozen=True)
class Places:
    """Where the recordings are and where the results go.

    Args:
      data: the recordings: a DCASE Task 2 part of any year, or your own <machine>/train and
        <machine>/test.
      out: the run's folder; the detector's file.
      weights: names or converted files of the backbones, in place of the recipe's and in their
        order.
      distributed: with several processes, one on each host; give the same command on all. They
        train together, each embeds its share of the machines, and the first scores. On Slurm, Open
        MPI, Kubernetes and TPU pods they find each other; elsewhere set JAX_COORDINATOR_ADDRESS
        (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID. All need the same --data and
        --out.
      runs: gets a folder for each member of an ensemble; what is finished there is kept. None:
        OUT/members.
    """

    data: Path
    out: Path
    weights: tuple[str, ...] = ()
    distributed: bool = False
    runs: Path | None = None


class Arguments(typing.NamedTuple):
    """What was given to a command."""

    recipe: str
    config: SystemConfig | EnsembleConfig
    places: Any  # the fields of `Places` that the recipe has
    options: dict[str, Any]  # fields of `Options`
    members: dict[str, SystemConfig]  # of an ensemble, by name


def parse_fit(args: list[str], recipe: str) -> tuple[list[Path], Arguments]:
    """Return the sources and what else the words after `fit` say; exit after help.

    Args:
      recipe: where no `--recipe` is given.
    """
    first = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    sources, rest = args[:first], args[first:]
    for i, word in enumerate(rest):
        if word.split("=")[0] == "--recipe":
            named = word.split("=", 1)[1:] or rest[i + 1 : i + 2]
            recipe, rest = (named or [""])[0], rest[:i] + rest[i + (1 if "=" in word else 2) :]
            break
    given = parse("fit", [recipe, *rest])
    if not sources:
        raise InputError(f"expected folders or files of healthy recordings; {_usage('fit')}")
    return list(map(Path, sources)), given


def _usage(command: str, recipe: str = "RECIPE") -> str:
    if command == "fit":
        return f"usage: asdjax fit DATA ... --out FILE --recipe {recipe} [OPTIONS]"
    return f"usage: asdjax {command} {recipe} --data DIR --out RUN [OPTIONS]"


def parse(command: str, args: list[str]) -> Arguments:
    """Return what the words after `run`, `train` or `embed` say; exit after help.

    Raises:
      InputError: `train` or `embed` of an ensemble; weights that do not fit.
    """
    recipe = RECIPES.get(args[0]) if args else None
    if recipe is None:
        asked = args[:1] in (["-h"], ["--help"])
        close = difflib.get_close_matches(args[0], RECIPES, n=3, cutoff=0.8) if args else []
        meant = f"; close names: {', '.join(close)}" if close else ""
        unknown = f"unknown recipe {args[0]!r}{meant}\n" if args and not asked else ""
        usage = f"{unknown}{_usage(command)}; recipes:"
        how = "fit --recipe RECIPE" if command == "fit" else f"{command} RECIPE"
        more = f"`asdjax recipes` describes them; `asdjax {how} --help` lists options"
        lines = [usage, *(f"  {name}" for name in RECIPES), more]
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    name, rest, config = args[0], args[1:], recipe.config
    if isinstance(config, EnsembleConfig) and command != "run":
        raise InputError(f"{name} is an ensemble; `{command}` takes one of its members")
    if {"-h", "--help"} & set(rest):
        print(help_text(command, name))
        sys.exit(0)
    prog = f"asdjax {command} {name}"
    if _has_one_layer(config):
        rest = [
            f"--{LAYER}{word.removeprefix('--layer')}" if word.split("=")[0] == "--layer" else word
            for word in rest
        ]
    if isinstance(config, SystemConfig):
        config, rest = _with_poolings(config, rest)
    values, config, rest = _parse(prog, option_fields(command, config), config, rest)
    members = {}
    if isinstance(config, EnsembleConfig):
        members = _members(prog, config, rest)
    systems = list(members.values()) or [config]
    others = replacements(systems, values.pop("weights", ()))
    members = {member: system.with_backbones(others) for member, system in members.items()}
    if isinstance(config, SystemConfig):
        config = config.with_backbones(others)
    for weights in dict.fromkeys(n for system in systems for n in system.backbones):
        read_header(find(others.get(weights, weights)))  # before hours of training
    options = {f.name: values.pop(f.name) for f in dataclasses.fields(Options) if f.name in values}
    options["reported"] = recipe.reported
    return Arguments(name, config, values, options, members)


def _with_poolings(config: SystemConfig, args: list[str]) -> tuple[SystemConfig, list[str]]:
    """Return the system with the poolings that are given, each as one word, and the other words."""
    encoders, others = list(config.encoders), []
    starts = [i for i, word in enumerate(args) if word.startswith("--")] + [len(args)]
    for start, stop in pairwise(starts):
        flag, *words = [*args[start].split("=", 1), *args[start + 1 : stop]]
        found = re.fullmatch(r"--encoders\.(\d+)\.(pools|scored)", flag)
        number = int(found[1]) if found else len(encoders)
        if number < len(encoders) and words and hasattr(encoders[number], found[2]):
            try:
                pools = () if words == ["none"] else tuple(map(Pool.parse, words))
            except ValueError as error:
                raise InputError(f"{flag}: {error}") from error
            changed = {found[2]: pools}
            if any(p.bands for p in pools) and getattr(encoders[number], "bands", None) == 1:
                changed["bands"] = BANDS  # of log-mels; other encoders have bands of their own
            encoders[number] = dataclasses.replace(encoders[number], **changed)
        else:
            others += args[start:stop]
    return dataclasses.replace(config, encoders=tuple(encoders)), args[: starts[0]] + others


def _has_one_layer(config: SystemConfig | EnsembleConfig) -> bool:
    """Return whether a system has one encoder, a backbone, so that "layer" says enough."""
    encoders = config.encoders if isinstance(config, SystemConfig) else ()
    return len(encoders) == 1 and hasattr(encoders[0], "layer")


def option_fields(command: str, config: SystemConfig | EnsembleConfig) -> list[dataclasses.Field]:
    """Return the options that a command of this recipe has."""
    trainings = [system.train for system in _systems(config) if system.train is not None]
    by_classes = all(isinstance(training, Train) for training in trainings)
    ensemble = isinstance(config, EnsembleConfig)
    fit = command == "fit"
    absent = {
        "reported": True,
        "runs": not ensemble,
        "data": fit,
        "force": fit,
        "reuse": fit or ensemble,
        "weights": not (ensemble or config.backbones),
        "distributed": fit or (not by_classes and command != "embed"),
        "pseudo_labels": fit or ensemble or not (trainings and by_classes),
        "keep_checkpoints": fit or not trainings or command == "embed",
        "year": command != "run",  # of scores and numbers
        "ground_truth": command != "run",
    }
    every = [*dataclasses.fields(Places), *dataclasses.fields(Options)]
    every += dataclasses.fields(Alarms) if fit else ()
    return [one for one in every if not absent.get(one.name)]


def _systems(config: SystemConfig | EnsembleConfig) -> list[SystemConfig]:
    """Return a recipe's systems."""
    if isinstance(config, SystemConfig):
        return [config]
    return [RECIPES[name].config for name in config.members]


def _parse(prog: str, options: Sequence[dataclasses.Field], config: Any, args: list[str]):
    """Return the options by name, the configuration, and the words that neither has.

    Only members of an ensemble may have further words.
    """
    hints = _hints()
    defaults = {
        o.name: tyro.MISSING if o.default is dataclasses.MISSING else o.default for o in options
    }
    named = [(o.name, hints[o.name], field(default=defaults[o.name])) for o in options]
    whole = Annotated[type(config), tyro.conf.arg(name="")]
    kind = make_dataclass("Command", [*named, ("config", whole, field(default=config))])
    found = tyro.cli(
        kind,
        prog=prog,
        args=args,
        default=kind(**defaults),
        config=(tyro.conf.AvoidSubcommands,),
        return_unknown_args=isinstance(config, EnsembleConfig),
        add_help=False,
    )
    found, rest = found if isinstance(found, tuple) else (found, [])
    return {o.name: getattr(found, o.name) for o in options}, found.config, rest


def _members(prog: str, config: EnsembleConfig, args: list[str]) -> dict[str, SystemConfig]:
    """Return the systems of an ensemble's members, with the fields that the words change.

    Args:
      args: `--MEMBER.FIELD VALUE` (without the part before the slash) for one member,
        `--all.FIELD VALUE` for every member that has the field.
    """
    known = {name: r.config for name, r in RECIPES.items() if isinstance(r.config, SystemConfig)}
    if unknown := [name for name in config.members if name not in known]:
        raise InputError(
            f"--members: expected recipes of single systems, got {', '.join(unknown)}; "
            f"there are {', '.join(known)}"
        )
    short = {name: name.rpartition("/")[2] for name in config.members}
    starts = [i for i, word in enumerate(args) if word.startswith("--")] + [len(args)]
    words: list[str] = args[: starts[0]]
    for start, stop in pairwise(starts):
        flag, *values = [*args[start].split("=", 1), *args[start + 1 : stop]]
        names = [""]
        if flag.startswith("--all."):
            path = flag.removeprefix("--all.").replace("_", "-")
            has = {n: [f.flag for f in flags(known[n])] for n in config.members}
            names = [n for n in config.members if _positive(path) in has[n]]
            if not names:
                raise InputError(f"{flag}: no member has this field")
        for name in names:
            words += [f"--{short[name]}.{path}" if name else flag, *values]
    kind = make_dataclass(
        "Members",
        [
            (f"m{i}", Annotated[SystemConfig, tyro.conf.arg(name=short[name])], known[name])
            for i, name in enumerate(config.members)
        ],
    )
    found = tyro.cli(
        kind, prog=prog, args=words, config=(tyro.conf.AvoidSubcommands,), add_help=False
    )
    return {name: getattr(found, f"m{i}") for i, name in enumerate(config.members)}


def replacements(systems: Iterable[SystemConfig], weights: Sequence[str]) -> dict[str, str]:
    """Return what stands in place of the weights that systems name, in order of first mention.

    Raises:
      InputError: another number of weights was given, or those of another kind of backbone.
    """
    named = dict.fromkeys(name for system in systems for name in system.backbones)
    if weights and len(weights) != len(named):
        instead = ", ".join(named) or "nothing: this system has no weights"
        raise InputError(f"--weights: expected a file in place of {instead}; got {len(weights)}")
    others = dict(zip(named, weights, strict=False))
    for name, other in others.items():
        kind = CHECKPOINTS[name].kind if name in CHECKPOINTS else None
        if kind and (got := read_header(find(other)).kind) != kind:
            raise InputError(f"--weights: expected {kind} in place of {name}, got {got}: {other}")
    return others


def _hints() -> dict[str, Any]:
    """Return the types of all options."""
    every = map(typing.get_type_hints, (Places, Options, Alarms))
    return {name: kind for hints in every for name, kind in hints.items()}


class Flag(typing.NamedTuple):
    """One flag of a recipe."""

    flag: str  # without the dashes, e.g. "train.held-out"
    values: str  # what it takes, e.g. "INT" or "{last,best}"
    default: str
    text: str


def flags(value: Any, prefix: str = "") -> Iterator[Flag]:
    """Yield the flags of a configuration as it is, in the order of its fields."""
    hints, texts = typing.get_type_hints(type(value)), _texts(type(value))
    for one in dataclasses.fields(value):
        path, held = f"{prefix}{one.name.replace('_', '-')}", getattr(value, one.name)
        parts = [held] if is_dataclass(held) else held if isinstance(held, tuple) else ()
        if one.name in ("pools", "scored"):
            named = " ".join(str(pool).lower().replace(" ", "") for pool in held)
            yield Flag(path, "POOLING ...", f"default: {named or 'none'}", texts[one.name])
        elif parts and all(map(is_dataclass, parts)):
            for i, part in enumerate(parts):
                yield from flags(part, f"{path}." if part is held else f"{path}.{i}.")
        elif held is not None or not _of_dataclasses(hints[one.name]):
            yield Flag(path, _values(hints[one.name]), _shown(held), texts.get(one.name, ""))


def help_text(command: str, name: str) -> str:
    """Return the help of a recipe: what is changed most, then every other flag by its part."""
    recipe = RECIPES[name]
    hints, texts = _hints(), _texts(Places) | _texts(Options) | _texts(Alarms)
    every = [
        Flag(
            o.name.replace("_", "-"),
            _values(hints[o.name]),
            "required" if o.default is dataclasses.MISSING else _shown(o.default),
            texts[o.name],
        )
        for o in option_fields(command, recipe.config)
    ]
    unused = set(_without_effect(command, recipe.config))
    every += flags(recipe.config)
    if _has_one_layer(recipe.config):
        every = [one._replace(flag="layer") if one.flag == LAYER else one for one in every]
    every = [one for one in every if not unused & {one.flag, one.flag.partition(".")[0]}]
    known = {one.flag: one for one in every}
    used = [known[n] for n in (u.replace("_", "-") for u in USED) if n in known][:MOST_USED]
    groups: dict[str, list[Flag]] = {"changed most": used}
    for one in every:
        if one not in used:
            groups.setdefault(one.flag.rpartition(".")[0] or "options", []).append(one)
    lines = [_usage(command, name), "", recipe.summary]
    for group, members in groups.items():
        lines += ["", f"{group}:"]
        for one in members:
            parent, _, last = one.flag.rpartition(".")
            negated = ".".join(filter(None, (parent, f"no-{last}")))
            head = f"  --{negated if one.default == ON else one.flag} {one.values}".rstrip()
            text = f"{one.text} ({one.default})" if one.default else one.text
            lines += [
                head,
                *textwrap.wrap(
                    text, WIDTH - 6, initial_indent="      ", subsequent_indent="      "
                ),
            ]
    if isinstance(recipe.config, EnsembleConfig):
        example = recipe.config.members[0]
        lines += [
            "",
            "fields of the members:",
            f"  --{example.rpartition('/')[2]}.FIELD VALUE   as in `asdjax run {example} --help`",
            "  --all.FIELD VALUE   in every member that has the field",
        ]
    return "\n".join(lines)


def _without_effect(command: str, config: Any) -> Iterator[str]:
    """Yield the flags, or the first words of flags, that change nothing here."""
    if not any(system.backbones for system in _systems(config)):
        yield "weights"  # an ensemble takes them, for --members may name others
    if command == "train":
        yield from ("scorer", "batch")
    if isinstance(config, SystemConfig) and config.train is None:
        for i, encoder in enumerate(config.encoders):
            for name in encoder.of_training:
                yield f"encoders.{i}.{name}"


def _positive(path: str) -> str:
    """Return the flag of which a flag such as "scorer.no-standardize" is the negation."""
    parent, _, last = path.rpartition(".")
    return ".".join(filter(None, (parent, last.removeprefix("no-"))))


def _texts(kind: type) -> dict[str, str]:
    """Return what a class's docstring says of its fields."""
    import docstring_parser

    parsed = docstring_parser.parse(kind.__doc__ or "")
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def _of_dataclasses(hint: Any) -> bool:
    return any(is_dataclass(one) for one in (hint, *typing.get_args(hint)))


def _values(hint: Any) -> str:
    """Return what a flag of this type takes."""
    if hint is bool:
        return ""
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    inner = [one for one in typing.get_args(hint) if one is not Ellipsis]
    if typing.get_origin(hint) is tuple:
        if Ellipsis not in typing.get_args(hint):
            return " ".join(map(_values, inner))
        return f"[{' '.join(map(_values, inner))} ...]"
    if inner:
        return "|".join("None" if one is type(None) else _values(one) for one in inner)
    return hint.__name__.upper()


def _shown(value: Any) -> str:
    """Return a default as it would be given; a flag without value says if it is set."""
    if isinstance(value, bool):
        return ON if value else ""
    if value in (None, ()):
        return ""
    if isinstance(value, tuple):
        return "default: " + " ".join(_shown(one).removeprefix("default: ") for one in value)
    return f"default: {value}"
