"""Two stages with pseudo labels: what the second depends on, and what is taken from other runs."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from trainings import hum_machine, small_system

from asdjax.files import read_csv
from asdjax.losses.margin import Margin
from asdjax.models import weights_file
from asdjax.models.spectral import Bands
from asdjax.scoring.clusters import Pseudo
from asdjax.stages import folder, stages
from asdjax.train.config import HeadConfig
from asdjax.types import InputError

BARE, DESCRIBED = ("fan", "section_00"), ("pump", "section_00")


def take_attributes(machine: Path) -> None:
    """Rename the files as the challenge of 2024 does for machines without attributes."""
    for path in machine.rglob("*.wav"):
        path.rename(path.with_name(re.sub(r"spd_\d", "noAttribute", path.name)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("two-stage")
    hum_machine(root / "data", "fan", 500.0, seed=1)
    hum_machine(root / "data", "pump", 2000.0, seed=2)
    take_attributes(root / "data" / "fan")
    return root


@pytest.fixture(scope="module")
def plain(root):
    """Return a system without pseudo labels that tells attributes apart."""
    heads = (HeadConfig(Margin("arcface", 0.2, 10.0), labels="attributes"),)
    return small_system(encoders=(Bands(embedding=8, bands=16),), heads=heads, steps=3)


@pytest.fixture(scope="module")
def system(plain):
    return replace(plain, pseudo=Pseudo(counts=(("fan", 3), ("valve", 2))))


@pytest.fixture(scope="module")
def ran(root, system):
    stages.run(system, root / "data", root / "run")
    return root / "run"


def arrays(out: Path) -> dict[str, np.ndarray]:
    return weights_file.load(out / "model.safetensors").arrays


def same(one: Path, other: Path) -> bool:
    ours, theirs = arrays(one), arrays(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)


def test_clips_without_attributes_get_clusters_as_classes_and_others_keep_theirs(ran):
    rows = read_csv(ran / "pseudo" / "labels.csv")[1:]
    made = folder.load(ran)
    fans = [c for c in made.groups[BARE] if c.split == "train"]
    assert rows == [[*BARE, clip.name, clip.attributes] for clip in fans]
    assert {label for *_, label in rows} == {"pseudo_00", "pseudo_01", "pseudo_02"}
    assert json.loads((ran / "labels.json").read_text())["0"] == [
        *(f"fan section_00 pseudo_0{i}" for i in range(3)),
        *(f"pump section_00 spd_{i}" for i in range(2)),
    ]
    assert not any(clip.attributes for clip in made.groups[BARE] if clip.split == "test")
    assert (ran / "pseudo" / "fan_section_00.png").is_file()


def test_the_clusters_are_those_of_the_first_stage(ran):
    """Ward's clusters by scikit-learn, of the embeddings that the first training gave."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    first = folder.load(ran / "first-stage")
    train = folder.load_embeddings(ran / "first-stage", first, BARE).select("train")
    unit = train.values / np.linalg.norm(train.values, axis=1, keepdims=True)
    expected = AgglomerativeClustering(3).fit(unit).labels_
    ours = [label for *_, label in read_csv(ran / "pseudo" / "labels.csv")[1:]]
    assert adjusted_rand_score(expected, ours) == 1
    names = json.loads((ran / "first-stage" / "labels.json").read_text())["0"]
    assert names == ["fan section_00", "pump section_00 spd_0", "pump section_00 spd_1"]


def test_the_second_stage_starts_from_the_checkpoint_again(ran, root, plain):
    """With the same labels and no first stage, even in a system without pseudo labels."""
    labels = ran / "pseudo" / "labels.csv"
    stages.run(plain, root / "data", root / "given", pseudo_labels=labels)
    assert same(root / "given", ran)
    assert not same(ran / "first-stage", ran)
    assert not (root / "given" / "first-stage").exists()
    assert (root / "given" / "pseudo" / "labels.csv").read_bytes() == labels.read_bytes()


def test_a_run_without_pseudo_labels_is_the_first_stage(ran, root, plain, system, capsys):
    stages.run(plain, root / "data", root / "plain")
    assert same(root / "plain", ran / "first-stage")
    results = (root / "plain" / "results.csv").stat().st_mtime_ns
    stages.run(system, root / "data", root / "shared", reuse=(root / "plain",))
    assert f"model.safetensors copied from {root / 'plain'}" in capsys.readouterr().err
    assert same(root / "plain", root / "shared" / "first-stage")
    assert not (root / "shared" / "first-stage" / "log.jsonl").exists()  # nothing was trained
    assert same(root / "shared", ran)
    assert (root / "plain" / "results.csv").stat().st_mtime_ns == results  # left as it was


def test_labels_of_an_earlier_command_are_not_used_unasked(ran, root, plain):
    labels, out = ran / "pseudo" / "labels.csv", root / "asked-before"
    stages.run(plain, root / "data", out, pseudo_labels=labels)
    with pytest.raises(
        InputError, match=r"model\.safetensors is (.|\n)*fan section_00\.labels differs"
    ):
        stages.run(plain, root / "data", out)


def test_another_training_is_no_first_stage(root, plain, system):
    other = replace(plain, train=replace(plain.train, seed=1))
    stages.train(other, root / "data", root / "other")
    stages.train(system, root / "data", root / "own", reuse=(root / "other",))
    assert (root / "own" / "first-stage" / "log.jsonl").exists()
    assert not same(root / "own" / "first-stage", root / "other")


def test_a_finished_run_is_left_alone(ran, root, system, capsys):
    scores = {path: path.stat().st_mtime_ns for path in (ran / "scores").rglob("*.csv")}
    stages.run(system, root / "data", ran)
    said = capsys.readouterr().err
    assert "already trained" in said
    assert "already scored" in said
    assert all(path.stat().st_mtime_ns == time for path, time in scores.items())


def test_other_labels_are_refused_where_there_is_a_training_and_change_nothing(ran, root, system):
    labels = ran / "pseudo" / "labels.csv"
    before, edited = labels.read_text(), root / "edited.csv"
    edited.write_text(before.replace("pseudo_02", "pseudo_00"))
    with pytest.raises(
        InputError, match=r"labels\.csv is there already(.|\n)*given: nothing before"
    ):
        stages.run(system, root / "data", ran, pseudo_labels=edited)
    fewer = replace(system, pseudo=Pseudo(counts=(("fan", 2),)))
    with pytest.raises(InputError, match=r"counts\.0\.1: 3 before, 2 now(.|\n)*another --out"):
        stages.run(fewer, root / "data", ran)
    assert labels.read_text() == before


def test_labels_edited_by_hand_are_classes(ran, root, plain):
    edited = root / "by-hand.csv"
    labels = (ran / "pseudo" / "labels.csv").read_text()
    edited.write_text(labels.replace("pseudo_02", "quiet").replace("pseudo_00", "quiet"))
    stages.train(plain, root / "data", root / "by-hand", pseudo_labels=edited)
    names = json.loads((root / "by-hand" / "labels.json").read_text())["0"]
    assert names[:2] == ["fan section_00 pseudo_01", "fan section_00 quiet"]


def test_embedding_needs_the_labels_of_the_training(ran, root, system, tmp_path):
    with pytest.raises(InputError, match=r"pseudo/labels\.csv"):
        stages.embed(system, root / "data", tmp_path)
    assert not list(tmp_path.iterdir())
    copied = shutil.copytree(ran, tmp_path / "run")
    (copied / "embeddings" / "fan_section_00.npz").unlink()
    stages.embed(system, root / "data", copied)
    for name in ("labels.csv", "fan_section_00.png"):
        assert (copied / "pseudo" / name).read_bytes() == (ran / "pseudo" / name).read_bytes()
    one, other = (np.load(out / "embeddings" / "fan_section_00.npz") for out in (copied, ran))
    np.testing.assert_array_equal(one["values"], other["values"])


def test_where_all_machines_have_attributes_there_is_one_stage(
    root, system, plain, tmp_path, capsys
):
    hum_machine(tmp_path / "data", "pump", 2000.0, seed=2)
    hum_machine(tmp_path / "data", "valve", 500.0, seed=1)
    stages.train(system, tmp_path / "data", tmp_path / "run")
    assert "no pseudo labels are made" in capsys.readouterr().err
    assert not (tmp_path / "run" / "first-stage").exists()
    stages.embed(system, tmp_path / "data", tmp_path / "run")
    assert (tmp_path / "run" / "embeddings" / "valve_section_00.npz").exists()


def test_more_clusters_than_clips_are_refused_before_anything_is_trained(root, plain, tmp_path):
    many = replace(plain, pseudo=Pseudo(counts=(("fan", 40),)))
    with pytest.raises(InputError, match=r"fan section_00: 40 of 12 clips"):
        stages.run(many, root / "data", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_does_not_need_its_first_stage_again(ran, root, system):
    copied = root / "copied"
    shutil.copytree(ran, copied)
    shutil.rmtree(copied / "first-stage")
    before = (copied / "pseudo" / "fan_section_00.png").stat().st_mtime_ns
    stages.run(system, root / "data", copied)
    assert not (copied / "first-stage").exists()
    assert (copied / "pseudo" / "fan_section_00.png").stat().st_mtime_ns == before


def test_a_label_edited_in_place_is_not_lost(ran, root, system):
    copied = root / "edited-in-place"
    shutil.copytree(ran, copied)
    labels = copied / "pseudo" / "labels.csv"
    edited = labels.read_text().replace("pseudo_02", "quiet")
    labels.write_text(edited)
    with pytest.raises(InputError, match=r"labels\.csv was changed after it was finished"):
        stages.run(system, root / "data", copied)
    assert labels.read_text() == edited


def test_recordings_that_changed_are_another_training(root, plain, tmp_path):
    shutil.copytree(root / "data", tmp_path / "data")
    stages.train(plain, tmp_path / "data", tmp_path / "run")
    path = next((tmp_path / "data" / "pump" / "train").glob("*source*.wav"))
    soundfile.write(path, soundfile.read(path)[0][::-1], 16000, "PCM_16")
    with pytest.raises(InputError, match=r"pump section_00\.content differs(.|\n)*--force"):
        stages.train(plain, tmp_path / "data", tmp_path / "run")
