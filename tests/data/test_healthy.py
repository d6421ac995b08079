"""Healthy recordings in any form that a user may have them in."""

from pathlib import Path

import pytest
import soundfile
from machines import SAMPLES, tone_machine

from asdjax.data import healthy
from asdjax.types import NORMAL, InputError


def clip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, [0.1, -0.1] * (SAMPLES // 2), 16000)
    return path


def named(dataset) -> list[tuple[str, str]]:
    return [(one.machine, one.name) for one in dataset.clips]


def test_a_folder_of_recordings_is_one_machine_in_natural_order(tmp_path):
    for i in (10, 2, 1):
        clip(tmp_path / "pump" / f"clip {i}.wav")
    (tmp_path / "pump" / ".hidden.wav").touch()
    (tmp_path / "pump" / "notes.txt").touch()
    dataset = healthy.gather([tmp_path / "pump"])
    assert named(dataset) == [("pump", f"clip {i}.wav") for i in (1, 2, 10)]
    assert {(one.split, one.label, one.domain) for one in dataset.clips} == {
        ("train", NORMAL, None)
    }


def test_a_folder_of_folders_is_a_machine_each(tmp_path):
    for machine in ("mill", "pump"):
        clip(tmp_path / machine / "a.wav")
    assert named(healthy.gather([tmp_path])) == [("mill", "a.wav"), ("pump", "a.wav")]
    both = healthy.gather([tmp_path / "pump", tmp_path / "mill" / "a.wav"])
    assert named(both) == [("mill", "a.wav"), ("pump", "a.wav")]


def test_of_the_layout_of_a_run_only_the_training_clips_count(tmp_path):
    tone_machine(tmp_path, "fan")
    whole, one = healthy.gather([tmp_path]), healthy.gather([tmp_path / "fan"])
    assert len(whole.clips) == 9
    assert set(named(whole)) == set(named(one))
    assert whole.notes == ("12 clips outside of train left out",)
    assert {c.domain for c in one.clips} == {"source", "target"}
    assert {c.attributes for c in whole.clips} == {"spd_1", "spd_2"}
    assert [c.path for c in whole.clips] == sorted(c.path for c in whole.clips)


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ([], ["absent"], "absent: no such folder or file"),
        (["a/x.txt"], ["a"], "expected wav or FLAC recordings, got none"),
        (["a/x.mp3"], ["a"], "got x.mp3; convert them"),
        (["a/x.wav", "a/b/y.wav"], ["a"], "in it and in folders below it"),
        (["a/anomaly_1.wav"], ["a"], "names that say anomaly: .*anomaly_1.wav"),
        (["a/x.wav"], ["a", "a/x.wav"], "given twice: .*x.wav"),
        ([], [], "expected a folder of healthy recordings"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, files, given, message):
    for name in files:
        clip(tmp_path / name) if name.endswith("wav") else (
            (tmp_path / name).parent.mkdir(exist_ok=True),
            (tmp_path / name).touch(),
        )
    with pytest.raises(InputError, match=message):
        healthy.gather([tmp_path / name for name in given])


def test_a_folder_of_training_clips_is_that_of_its_machine(tmp_path):
    tone_machine(tmp_path, "fan")
    folder = healthy.gather([tmp_path / "fan" / "train"])
    files = healthy.gather(sorted((tmp_path / "fan" / "train").iterdir()))
    assert {one.machine for one in (*folder.clips, *files.clips)} == {"fan"}
    assert len(folder.clips) == len(files.clips) == 9


def test_a_table_that_is_not_read_is_told(tmp_path):
    clip(tmp_path / "pump" / "a.wav")
    (tmp_path / "pump" / "labels.csv").write_text("file_name,label\na.wav,normal\n")
    assert "labels.csv is not read" in healthy.gather([tmp_path / "pump"]).notes[0]


def test_recordings_are_found_at_any_depth_each_once(tmp_path):
    files = [clip(tmp_path / name) for name in ("b/c/2.wav", "b/10.wav", "b/9.flac", "a.wav")]
    found = list(healthy.recordings([tmp_path / "b", tmp_path]))
    assert sorted(found) == sorted(files)
    assert found.index(files[2]) < found.index(files[1])
    with pytest.raises(InputError, match="no such folder or file"):
        list(healthy.recordings([tmp_path / "absent"]))
    with pytest.raises(InputError, match="expected recordings or folders of them, got none"):
        list(healthy.recordings([]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="got none"):
        list(healthy.recordings([tmp_path / "empty"]))
