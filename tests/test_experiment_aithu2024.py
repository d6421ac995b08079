"""What the tables of `experiments/aithu2024.py` are made of."""

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from asdjax import arguments
from asdjax.data import dcase
from asdjax.models import weights_file
from asdjax.models.weights_file import Header
from asdjax.recipes import RECIPES, published
from asdjax.stages.folder import MODEL

FOLDER = Path(__file__).parents[1] / "experiments"
SINGLES = ["beats-full", "beats-lora", "beats-pse", "eat-full", "eat-lora", "eat-pse", "dual"]
SINGLES = [f"aithu2024/{name}" for name in SINGLES]  # the rows of table 1
ENSEMBLES = [f"aithu2024/system{number}" for number in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def experiment():
    """The experiment as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        spec = importlib.util.spec_from_file_location("aithu2024", FOLDER / "aithu2024.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    sys.modules.pop("repeated")


def adapted(name: str) -> bool:
    return all(encoder.adapter for encoder in RECIPES[name].config.encoders)


def test_a_cell_is_a_harmonic_mean_over_machines_of_one_number_or_of_all(experiment):
    values = [(50.0, 60.0, 70.0), (100.0, 30.0, 35.0)]
    want = [2 / (1 / 50 + 1 / 100), 40.0, 2 / (1 / 70 + 1 / 35)]
    assert [experiment.cell(values, i) for i in range(3)] == pytest.approx(want)
    each = 1 / 50 + 1 / 60 + 1 / 70 + 1 / 100 + 1 / 30 + 1 / 35
    assert experiment.cell(values, 3) == pytest.approx(6 / each)
    assert experiment.cell(values[:1], 2) == pytest.approx(70)


def test_systems_are_in_the_order_of_the_tables(experiment):
    assert (experiment.SINGLES, experiment.ENSEMBLES) == (SINGLES, ENSEMBLES)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_the_cell_of_all_is_the_published_total_of_an_ensemble(experiment, name):
    table = published.tables(name)["dev 2024"]
    values = [[row[k] for k in published.AREAS] for row in published.machines(table).values()]
    # The published values are rounded to 0.01, each by at most 0.005, and so is the total.
    assert experiment.cell(values, 3) == pytest.approx(published.total(table), abs=0.01)


def test_searches_are_over_the_lora_models_and_over_all(experiment):
    lora = [i for i, name in enumerate(SINGLES) if adapted(name)]
    assert len(lora) == 3
    searched = {name: list(used) for name, used in experiment.SEARCHED.items()}
    assert searched == {"aithu2024/system1": lora, "aithu2024/system3": list(range(7))}
    for name, used in searched.items():  # as the report's own searches found
        assert set(RECIPES[name].config.members) <= {SINGLES[i] for i in used}


@pytest.fixture
def data(tmp_path) -> Path:
    """Recordings of three machines, with attributes; they are never decoded."""
    for machine in ("fan", "slider", "valve"):
        for split, domain, label in [
            ("train", "source", "normal"),
            ("train", "target", "normal"),
            ("test", "source", "anomaly"),
        ]:
            name = f"section_00_{domain}_{split}_{label}_0007_vel_3_m-n_A.wav"
            path = tmp_path / "raw" / machine / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{machine} {name}")
    return tmp_path / "raw"


def test_attributes_are_hidden_of_the_machines_asked_for_alone(experiment, data, tmp_path):
    hidden = experiment.repeated.hide(data, ["slider", "valve"], tmp_path / "runs")
    assert tmp_path / "runs" in hidden.parents
    for clip in dcase.scan(hidden).clips:
        assert bool(clip.attributes) == (clip.machine == "fan")
    links, files = (sorted(p for p in f.rglob("*") if p.is_file()) for f in (hidden, data))
    assert sorted(path.resolve() for path in links) == [path.resolve() for path in files]
    for path in links:
        original = path.resolve()
        assert path.is_symlink()
        assert path.parts[-3:-1] == original.parts[-3:-1]
        # All that is known but the attributes: section, domain, split, label, number.
        assert path.name.split("_")[:6] == original.stem.split("_")[:6]
        assert (path.name == original.name) == (path.parts[-3] == "fan")


def test_hiding_again_adds_nothing_and_hiding_others_has_a_folder_of_its_own(
    experiment, data, tmp_path
):
    def names(folder):
        return sorted(path.relative_to(folder) for path in folder.rglob("*.wav"))

    first = experiment.repeated.hide(data, ["slider"], tmp_path / "runs")
    before = names(first)
    assert experiment.repeated.hide(data, ["slider"], tmp_path / "runs") == first
    assert names(first) == before
    folders = [
        experiment.repeated.hide(data, m, tmp_path / "runs") for m in (["fan"], ["fan", "slider"])
    ]
    assert len({first, *folders}) == 3
    assert names(first) == before
    assert all(len(names(folder)) == len(before) for folder in folders)
    assert experiment.repeated.hide(data, ["slider", "fan"], tmp_path / "runs") == folders[1]


@pytest.mark.parametrize("name", SINGLES)
def test_every_recipe_takes_the_fields_of_a_tiny_run(experiment, name, tmp_path):
    fields = experiment.repeated.tiny_fields(name)
    given = Namespace(systems=[name], out=tmp_path)
    weights = experiment.repeated.tiny_backbones(given)
    words = [name, "--data", "data", "--out", "out", "--weights", *weights, *fields]
    system = arguments.parse("run", words).config
    train, recipe = system.train, RECIPES[name].config
    assert (system.audio.seconds, train.steps, train.batch) == (6, 60, 16)
    assert (train.accumulate, train.log_every, train.optimizer.schedule.warmup) == (1, 20, 6)
    for encoder, full in zip(system.encoders, recipe.encoders, strict=True):
        assert (encoder.adapter and encoder.adapter.rank) == (4 if full.adapter else None)
    assert train.heads == recipe.train.heads
    assert train.optimizer.schedule.peak == recipe.train.optimizer.schedule.peak


BEATS = {"layers.0.kernel": 5, "norm.scale": 2}  # tens of thousands of numbers


def write(path: Path, kind: str, **sizes: int) -> str:
    """Write weights of so many tens of thousands of numbers."""
    values = {name: np.zeros((n, 10_000), np.float32) for name, n in sizes.items()}
    weights_file.save(path, values, Header(kind, {}))
    return str(path)


def test_parameters_are_counted_once_and_statistics_not_at_all(experiment, tmp_path):
    files = [
        write(tmp_path / "beats.safetensors", "beats", **BEATS),
        write(tmp_path / "eat.safetensors", "eat", **{"layers.0.kernel": 20}),
    ]
    given = Namespace(weights=files, systems=list(SINGLES), out=tmp_path)
    pool = {"branches.0.pool.norm.mean": 3, "branches.0.pool.norm.var": 3, "heads.0.centers": 1}
    full = {f"branches.0.backbone.{name}": n for name, n in BEATS.items()}
    adapters = {i: {f"branches.{i}.backbone.layers.0.lora_a": 4 + i} for i in (0, 1)}
    trained = {
        "beats-full": full | pool,
        "eat-lora": adapters[0] | pool,
        "dual": adapters[0] | adapters[1] | pool,
    }
    for name, sizes in trained.items():
        write(tmp_path / "aithu2024" / name / "seed0" / MODEL, "system", **sizes)
    counted = {name: experiment.counts(f"aithu2024/{name}", given) for name in trained}
    assert counted == {
        "beats-full": ("0.08M", "0.08M"),  # 5 + 2 of the backbone, all trained, and 1 of the head
        "eat-lora": ("0.25M", "0.05M"),  # 20 + 4 + 1
        "dual": ("0.37M", "0.10M"),  # 5 + 2 + 20 and 4 + 5 + 1
    }
