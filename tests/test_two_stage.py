"""Two stages with pseudo labels: what the second depends on, and what is taken from other runs."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from machines import tiny_backbone
from trainings import hum_machine, quick_compiles, small_system

from asdjax import params, pipeline, runs
from asdjax.files import read_csv
from asdjax.losses.margin import Margin
from asdjax.scoring.pseudo import Pseudo
from asdjax.train.config import HeadConfig
from asdjax.types import InputError

BARE, DESCRIBED = ("fan", "section_00"), ("pump", "section_00")


def take_attributes(machine: Path) -> None:
    """Rename the files as the challenge of 2024 does for machines without attributes."""
    for path in machine.rglob("*.wav"):
        path.rename(path.with_name(re.sub(r"spd_\d", "noAttribute", path.name)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-stage")
    hum_machine(folder / "data", "fan", 500.0, seed=1)
    hum_machine(folder / "data", "pump", 2000.0, seed=2)
    take_attributes(folder / "data" / "fan")
    with quick_compiles(folder / "compiled"):
        yield folder


@pytest.fixture(scope="module")
def plain(folder):
    """Return a system without pseudo labels that tells attributes apart."""
    heads = (HeadConfig(Margin("arcface", 0.2, 10.0), labels="attributes"),)
    return small_system(tiny_backbone(folder / "tiny.safetensors"), heads=heads, steps=3)


@pytest.fixture(scope="module")
def system(plain):
    return replace(plain, pseudo=Pseudo(counts=(("fan", 3), ("valve", 2))))


@pytest.fixture(scope="module")
def ran(folder, system):
    pipeline.run(system, folder / "data", folder / "run")
    return folder / "run"


def arrays(out: Path) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value) for name, value in params.load(out / "model.safetensors")[0].items()
    }


def same(one: Path, other: Path) -> bool:
    ours, theirs = arrays(one), arrays(other)
    return ours.keys() == theirs.keys() and all((ours[n] == theirs[n]).all() for n in ours)


def test_clips_without_attributes_get_clusters_as_classes_and_others_keep_theirs(ran):
    rows = read_csv(ran / "pseudo" / "labels.csv")[1:]
    made = runs.load(ran)
    fans = [c for c in made.groups[BARE] if c.split == "train"]
    assert rows == [[*BARE, clip.name, clip.attributes] for clip in fans]
    assert {label for *_, label in rows} == {"pseudo_00", "pseudo_01", "pseudo_02"}
    assert json.loads((ran / "labels.json").read_text())["0"] == [
        *(f"fan section_00 pseudo_0{i}" for i in range(3)),
        *(f"pump section_00 spd_{i}" for i in range(2)),
    ]
    assert not any(clip.attributes for clip in made.groups[BARE] if clip.split == "test")
    assert (ran / "pseudo" / "fan_section_00.png").stat().st_size > 10_000


def test_the_clusters_are_those_of_the_first_stage(ran):
    """Ward's clusters by scikit-learn, of the embeddings that the first training gave."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    first = runs.load(ran / "first-stage")
    found = runs.load_embeddings(ran / "first-stage", first, BARE)
    train = found.take([i for i, c in enumerate(found.clips) if c.split == "train"])
    unit = train.values / np.linalg.norm(train.values, axis=1, keepdims=True)
    expected = AgglomerativeClustering(3).fit(unit).labels_
    ours = [label for *_, label in read_csv(ran / "pseudo" / "labels.csv")[1:]]
    assert adjusted_rand_score(expected, ours) == 1
    names = json.loads((ran / "first-stage" / "labels.json").read_text())["0"]
    assert names == ["fan section_00", "pump section_00 spd_0", "pump section_00 spd_1"]


def test_the_second_stage_starts_from_the_checkpoint_again(ran, folder, plain):
    """With the same labels and no first stage, even in a system without pseudo labels."""
    labels = ran / "pseudo" / "labels.csv"
    pipeline.run(plain, folder / "data", folder / "given", pseudo_labels=labels)
    assert same(folder / "given", ran)
    assert not same(ran / "first-stage", ran)
    assert not (folder / "given" / "first-stage").exists()
    assert (folder / "given" / "pseudo" / "labels.csv").read_bytes() == labels.read_bytes()


def test_a_run_without_pseudo_labels_is_the_first_stage(ran, folder, plain, system, capsys):
    pipeline.run(plain, folder / "data", folder / "plain")
    assert same(folder / "plain", ran / "first-stage")
    results = (folder / "plain" / "results.csv").stat().st_mtime_ns
    pipeline.run(system, folder / "data", folder / "shared", reuse=(folder / "plain",))
    told = capsys.readouterr().err
    assert f"first stage: the training of {folder / 'plain'}" in " ".join(told.split())
    assert not (folder / "shared" / "first-stage" / "model.safetensors").exists()
    assert same(folder / "shared", ran)
    assert (folder / "plain" / "results.csv").stat().st_mtime_ns == results  # left as it was


def test_labels_of_an_earlier_command_are_not_used_unasked(ran, folder, plain):
    labels, out = ran / "pseudo" / "labels.csv", folder / "asked-before"
    pipeline.run(plain, folder / "data", out, pseudo_labels=labels)
    with pytest.raises(InputError, match=r"data_sha256: checkpoint"):
        pipeline.run(plain, folder / "data", out)


def test_another_training_is_no_first_stage(folder, plain, system):
    other = replace(plain, train=replace(plain.train, seed=1))
    pipeline.train(other, folder / "data", folder / "other")
    pipeline.train(system, folder / "data", folder / "own", reuse=(folder / "other",))
    assert (folder / "own" / "first-stage" / "model.safetensors").exists()


def test_a_finished_run_is_left_alone(ran, folder, system, capsys):
    scores = {path: path.stat().st_mtime_ns for path in (ran / "scores").rglob("*.csv")}
    pipeline.run(system, folder / "data", ran)
    assert "already finished" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == time for path, time in scores.items())


def test_other_labels_are_refused_where_there_is_a_training_and_change_nothing(ran, folder, system):
    labels = ran / "pseudo" / "labels.csv"
    before, edited = labels.read_text(), folder / "edited.csv"
    edited.write_text(before.replace("pseudo_02", "pseudo_00"))
    with pytest.raises(InputError, match=r"other pseudo labels.*another --out, or --force"):
        pipeline.run(system, folder / "data", ran, pseudo_labels=edited)
    fewer = replace(system, pseudo=Pseudo(counts=(("fan", 2),)))
    with pytest.raises(InputError, match=r"other pseudo labels.*another --out, or --force"):
        pipeline.run(fewer, folder / "data", ran)
    assert labels.read_text() == before


def test_labels_edited_by_hand_are_classes(ran, folder, plain):
    edited = folder / "by-hand.csv"
    labels = (ran / "pseudo" / "labels.csv").read_text()
    edited.write_text(labels.replace("pseudo_02", "quiet").replace("pseudo_00", "quiet"))
    pipeline.train(plain, folder / "data", folder / "by-hand", pseudo_labels=edited)
    names = json.loads((folder / "by-hand" / "labels.json").read_text())["0"]
    assert names[:2] == ["fan section_00 pseudo_01", "fan section_00 quiet"]


def test_embedding_needs_the_labels_of_the_training(folder, system, tmp_path):
    with pytest.raises(InputError, match=r"pseudo/labels\.csv"):
        pipeline.embed(system, folder / "data", tmp_path)


def test_where_all_machines_have_attributes_there_is_one_stage(
    folder, system, plain, tmp_path, capsys
):
    hum_machine(tmp_path / "data", "pump", 2000.0, seed=2)
    hum_machine(tmp_path / "data", "valve", 500.0, seed=1)
    pipeline.train(system, tmp_path / "data", tmp_path / "run")
    assert "no pseudo labels are made" in capsys.readouterr().err
    assert not (tmp_path / "run" / "first-stage").exists()
    pipeline.embed(system, tmp_path / "data", tmp_path / "run")
    assert (tmp_path / "run" / "embeddings" / "valve_section_00.npz").exists()


def test_more_clusters_than_clips_are_refused_before_anything_is_trained(folder, plain, tmp_path):
    many = replace(plain, pseudo=Pseudo(counts=(("fan", 40),)))
    with pytest.raises(InputError, match=r"fan section_00: 40 of 12 clips"):
        pipeline.run(many, folder / "data", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_does_not_need_its_first_stage_again(ran, folder, system):
    copied = folder / "copied"
    shutil.copytree(ran, copied)
    shutil.rmtree(copied / "first-stage")
    before = (copied / "pseudo" / "fan_section_00.png").stat().st_mtime_ns
    pipeline.run(system, folder / "data", copied)
    assert not (copied / "first-stage").exists()
    assert (copied / "pseudo" / "fan_section_00.png").stat().st_mtime_ns == before


def test_a_label_edited_in_place_is_not_lost(ran, folder, system):
    copied = folder / "edited-in-place"
    shutil.copytree(ran, copied)
    labels = copied / "pseudo" / "labels.csv"
    edited = labels.read_text().replace("pseudo_02", "quiet")
    labels.write_text(edited)
    with pytest.raises(InputError, match=r"labels\.csv has other pseudo labels"):
        pipeline.run(system, folder / "data", copied)
    assert labels.read_text() == edited


def test_recordings_that_changed_are_another_training(folder, plain, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    pipeline.train(plain, tmp_path / "data", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    path = next((tmp_path / "data" / "pump" / "train").glob("*source*.wav"))
    soundfile.write(path, soundfile.read(path)[0][::-1], 16000, "PCM_16")
    with pytest.raises(InputError, match=r"model\.safetensors is of another training .* --force"):
        pipeline.train(plain, tmp_path / "data", tmp_path / "run")
