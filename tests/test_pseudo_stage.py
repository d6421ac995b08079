"""The stage `pseudo`: labels of machines without attributes, as a file that people may edit."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machines import tone_machine

from asdjax import __main__ as command_line
from asdjax.data import labels as classes
from asdjax.files import read_csv, write_csv
from asdjax.recipes import RECIPES
from asdjax.scoring.clusters import Pseudo
from asdjax.stages import folder, pseudo_labels, stages
from asdjax.types import Clip, Embeddings, InputError

BARE = "section_00_{domain}_{split}_{label}_{index:04d}_noAttribute.wav"


def machine(name, attributes="", count=6, section="section_00"):
    """Return training clips 0.wav ..., and a test clip that has the name of the first of them."""
    train = [
        Clip(Path(name, "train", f"{i}.wav"), name, section, "train", "source", 0, attributes)
        for i in range(count)
    ]
    return (*train, Clip(Path(name, "test", "0.wav"), name, section, "test", None, 0))


CLIPS = (*machine("fan", "spd_1"), *machine("gearbox"), *machine("slider"))
LABELS = {
    (name, "section_00", f"{i}.wav"): f"pseudo_{i % 2:02d}"
    for name in ("gearbox", "slider")
    for i in range(6)
}


def test_machines_without_attributes():
    half = replace(machine("bearing")[0], attributes="vel_6"), *machine("bearing")[1:]
    supplement = Clip(Path("a/supplemental/s.wav"), "valve", "section_00", "supplemental")
    more = machine("gearbox", section="section_01")
    assert pseudo_labels.without_attributes([*CLIPS, *half, supplement, *more]) == [
        ("gearbox", "section_00"),
        ("slider", "section_00"),
        ("gearbox", "section_01"),
    ]


def test_labels_become_attributes_of_training_clips_and_of_nothing_else():
    got = pseudo_labels.apply(CLIPS, LABELS)
    assert [clip.attributes for clip in got[:7]] == ["spd_1"] * 6 + [""]
    assert [clip.attributes for clip in got[7:14]] == ["pseudo_00", "pseudo_01"] * 3 + [""]
    assert [replace(clip, attributes="") for clip in got] == [
        replace(clip, attributes="") for clip in CLIPS
    ]
    training = [clip for clip in got if clip.split == "train"]
    assert len(classes.vocabulary(training, "attributes")) == 1 + 2 + 2
    assert pseudo_labels.without_attributes(got) == []


def test_the_file_gives_back_what_was_saved(tmp_path):
    pseudo_labels.save_labels(tmp_path / "labels.csv", LABELS)
    assert (tmp_path / "labels.csv").read_text().splitlines()[:2] == [
        "machine,section,file,label",
        "gearbox,section_00,0.wav,pseudo_00",
    ]
    assert pseudo_labels.load_labels(tmp_path / "labels.csv", CLIPS) == LABELS


def test_labels_may_be_edited_by_hand(tmp_path):
    rows = [[*key, 'any "text", ä'] for key in reversed(LABELS)]
    write_csv(tmp_path / "labels.csv", [pseudo_labels.HEADER, *rows])
    edited = pseudo_labels.load_labels(tmp_path / "labels.csv", CLIPS)
    assert edited == dict.fromkeys(LABELS, 'any "text", ä')


def test_every_mistake_in_the_file_is_told_at_once(tmp_path):
    path = tmp_path / "labels.csv"
    rows = [[*key, label] for key, label in LABELS.items()][1:]
    rows += [
        ["slider", "section_00", "0.wav", "again"],
        ["fan", "section_00", "0.wav", "own"],
        ["valve", "section_00", "0.wav", "x"],
        ["slider", "section_00", "9.wav", "x"],
        ["slider", "section_00", "2.wav"],
        ["slider", "section_00", "3.wav", ""],
        ["slider", "section_00", "4.wav", "two\nlines"],
    ]
    write_csv(path, [pseudo_labels.HEADER, *rows])
    with pytest.raises(InputError) as told:
        pseudo_labels.load_labels(path, CLIPS)
    assert str(told.value).splitlines()[0] == f"{path} has no labels for these clips:"
    assert "more than one row for: slider/section_00/0.wav\n" in str(told.value)
    assert "have attributes, remove them: fan/section_00/0.wav\n" in str(told.value)
    assert "valve/section_00/0.wav, slider/section_00/9.wav\n" in str(told.value)
    assert "no row for training clips, add: gearbox/section_00/0.wav" in str(told.value)
    for malformed in ("2.wav", "3.wav,", "4.wav,two\nlines"):
        assert f"slider,section_00,{malformed}" in str(told.value)


@pytest.mark.parametrize("text", ["", "machine;section;file;label\n", "gearbox,s,0.wav,a\n"])
def test_a_file_without_the_header_is_refused(text, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=r"labels.csv: expected the first line machine,section"):
        pseudo_labels.load_labels(tmp_path / "labels.csv", CLIPS)
    with pytest.raises(InputError, match=r"none.csv"):
        pseudo_labels.load_labels(tmp_path / "none.csv", CLIPS)


def embedded(name, groups=3, each=4):
    """Return training clips whose embeddings are in groups, and which group each is in."""
    rng, group = np.random.default_rng(0), np.arange(groups * each) % groups
    values = np.eye(groups, 8)[group] + 0.01 * rng.standard_normal((len(group), 8))
    return Embeddings(machine(name, count=len(group))[:-1], values.astype(np.float32)), group


def test_every_machine_gets_its_number_of_clusters(capsys):
    machines = [embedded("gearbox")[0], embedded("slider")[0]]
    config = Pseudo(counts=(("ToothBrush", 7), ("slider", 2), ("AirCompressor", 5)))
    found = pseudo_labels.cluster_all(machines, config)
    assert {clips[0].machine: clusters.count for clips, _, clusters in found} == {
        "gearbox": 3,
        "slider": 2,
    }
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "clusters given, but no such machine without attributes: AirCompressor, ToothBrush"
    )


def test_a_machine_gets_the_fewest_clusters_if_its_number_is_not_given():
    """Three groups are found unless more clusters are needed."""
    machines = [embedded("gearbox")[0], embedded("slider")[0]]
    for fewest, count in ((1, 3), (5, 5)):
        found = pseudo_labels.cluster_all(machines, Pseudo("kmeans"), fewest)
        assert [clusters.count for *_, clusters in found] == [count, count]


def test_all_machines_that_cannot_be_clustered_are_told():
    gearbox, slider = embedded("gearbox")[0], embedded("slider")[0]
    slider = replace(slider, values=np.full_like(slider.values, np.nan))
    with pytest.raises(InputError) as told:
        pseudo_labels.cluster_all([gearbox, slider], Pseudo(counts=(("gearbox", 13),)))
    assert "- gearbox section_00: expected at most 12 clusters" in str(told.value)
    assert "got 13" in str(told.value)
    assert "- slider section_00: expected finite embeddings, got 12 of 12" in str(told.value)


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_written_labels_are_the_groups(method, tmp_path, capsys):
    machines, group = [embedded("gearbox")[0], embedded("slider")[0]], embedded("slider")[1]
    path = tmp_path / "a" / "labels.csv"
    pseudo_labels.write(path, machines, Pseudo(method, (("slider", 3),)))
    clips = [clip for machine in machines for clip in machine.clips]
    labels = pseudo_labels.load_labels(path, clips)
    assert list(labels) == [(*clip.group, clip.name) for clip in clips]
    assert list(labels.values()) == [f"pseudo_{g:02d}" for g in group] * 2  # equal sizes: by clip
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"labels.csv", "gearbox_section_00.png", "slider_section_00.png"}
    table = capsys.readouterr().out
    assert "silhouette" in table
    assert "given" in table
    assert "4 to 4" in table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a finished run on a machine with attributes and one without."""
    root = tmp_path_factory.mktemp("stage")
    tone_machine(root / "data", "fan")
    tone_machine(root / "data", "gearbox", name=BARE)
    stages.run(RECIPES["frozen/logmel"].config, root / "data", root / "run")
    return root / "run"


def test_the_command_labels_the_machines_of_a_run(run, tmp_path, monkeypatch, capsys):
    words = ["asdjax", "pseudo", str(run), "--counts", "gearbox", "2", "ToothBrush", "7"]
    monkeypatch.setattr(sys, "argv", words)
    command_line.main()
    monkeypatch.setattr(
        sys, "argv", ["asdjax", "pseudo", str(run), "--out", str(tmp_path), "--method", "kmeans"]
    )
    command_line.main()
    assert {path.name for path in tmp_path.iterdir()} == {"labels.csv", "gearbox_section_00.png"}
    clips = folder.load(run).clips
    labels = pseudo_labels.load_labels(run / folder.LABELS, clips)
    assert {key[0] for key in labels} == {"gearbox"}
    domain = {clip.name: clip.domain for clip in clips if clip.split == "train"}
    # The two domains differ twofold in level: the loudest difference between these clips.
    assert {(domain[key[2]], label) for key, label in labels.items()} == {
        ("source", "pseudo_00"),
        ("target", "pseudo_01"),
    }
    assert len(read_csv(tmp_path / "labels.csv")) == 1 + 9
    assert "ToothBrush" in capsys.readouterr().err


def test_a_run_whose_machines_all_have_attributes_is_refused(run, tmp_path):
    made = folder.load(run)
    described = [clip for clip in made.clips if clip.machine == "fan"]
    folder.save(tmp_path, replace(made, clips=tuple(described)))
    with pytest.raises(InputError, match="expected a run with a machine without attributes"):
        pseudo_labels.cluster_run(tmp_path, Pseudo())


def test_a_run_without_embeddings_is_refused(run, tmp_path):
    folder.save(tmp_path, folder.load(run))
    with pytest.raises(InputError, match="give the run's command again"):
        pseudo_labels.cluster_run(tmp_path, Pseudo())
