"""A detector gives the scores of the run that it is of, in one file, on any sound."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from machines import tiny_eat, tone_machine
from trainings import hum_machine, small_system, two_machines

from asdjax import Detector, __version__
from asdjax.baseline import FitAutoencoders
from asdjax.config import SystemConfig
from asdjax.detector import fitting
from asdjax.detector.fitting import Alarms
from asdjax.metrics import score_files
from asdjax.models import weights_file
from asdjax.models.logmel import LogMel
from asdjax.recipes import RECIPES
from asdjax.scoring.knn import Knn
from asdjax.stages import stages
from asdjax.types import InputError

BASELINE = FitAutoencoders(epochs=2, batch=16, learning_rate=1e-2)
SYSTEMS = {
    "frozen": lambda _: RECIPES["frozen/logmel"].config,
    "density": lambda _: RECIPES["beyond/logmel"].config,
    "trained": lambda folder: small_system(tiny_eat(folder / "eat.safetensors")),
    "baseline": lambda _: replace(RECIPES["baseline/mahala"].config, train=BASELINE),
}
QUICK = SystemConfig((LogMel(),), Knn())  # nothing to train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_machines(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def fitted(data):
    return Detector.fit(data, QUICK, alarms=Alarms(confirm=(1, 1)))


def clips_of(data: Path, machine: str) -> list[Path]:
    return sorted((data / machine / "test").iterdir())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_detector_of_a_run_gives_its_scores(name, data, tmp_path):
    out = tmp_path / "run"
    stages.run(SYSTEMS[name](tmp_path), data, out)
    fitting.of_run(out).save(tmp_path / "machine.asdjax")
    made = Detector.load(tmp_path / "machine.asdjax")
    for of_run in score_files.load(out / "scores"):
        paths = [data / of_run.machine / "test" / name for name in of_run.names]
        got = made.score(paths)
        np.testing.assert_allclose(got, of_run.values, rtol=0, atol=1e-6)  # the bound
        alone = made.score(paths[3])
        # 1e-5: a program for another number of clips sums in another order
        np.testing.assert_allclose(alone, of_run.values[[3]], rtol=1e-5, atol=1e-6)


def test_anomalies_lie_above_the_threshold_and_normal_clips_below(fitted, data):
    for machine in ("fan", "pump"):
        verdicts = fitted.judge(clips_of(data, machine))
        assert {one.machine for one in verdicts} == {machine}
        odd = ["anomaly" in one.file for one in verdicts]
        assert [one.above for one in verdicts] == odd
        names = {clip.name for clip in fitted.machine(machine).normal.clips}
        assert all(one.nearest in names for one in verdicts)


def test_equal_detectors_are_equal_files_and_a_file_is_the_detector(fitted, data, tmp_path):
    for name in ("a", "b"):
        fitted.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = Detector.load(tmp_path / "a")
    assert read.system == fitted.system
    for one, other in zip(read.machines, fitted.machines, strict=True):
        assert (one.rule, one.heard, one.every) == (other.rule, other.heard, other.every)
        assert [c.name for c in one.normal.clips] == [c.name for c in other.normal.clips]
    paths = clips_of(data, "fan")
    assert read.judge(paths) == fitted.judge(paths)
    read.save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_arrays_score_as_the_files_that_hold_them(fitted, data, tmp_path):
    paths = clips_of(data, "pump")
    ints = [soundfile.read(path, dtype="int16")[0] for path in paths]
    want = fitted.score(paths)
    np.testing.assert_array_equal(fitted.score(ints, "pump"), want)
    # 2e-5: float samples take a program of their own
    floats = [wave / 32768 for wave in ints]
    np.testing.assert_allclose(fitted.score(floats, "pump"), want, rtol=2e-5)
    stereo = np.stack([ints[0], ints[0]], 1)
    np.testing.assert_allclose(fitted.score(stereo, "pump"), want[:1], rtol=2e-5)
    short = ints[0][:6001]  # padded to a second, which is masked
    soundfile.write(tmp_path / "short.wav", short, 16000, "PCM_16")
    of_file = fitted.score(tmp_path / "short.wav", "pump")
    np.testing.assert_allclose(fitted.score(short, "pump"), of_file, rtol=2e-5)
    fast = np.repeat(floats[0], 3)  # 48 kHz
    soundfile.write(tmp_path / "fast.wav", fast, 48000, "FLOAT")
    of_file = fitted.score(tmp_path / "fast.wav", "pump")
    np.testing.assert_allclose(fitted.score(fast, "pump", 48000), of_file, rtol=2e-5)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros(8000, np.float32), "got a constant"),
        (np.full(8000, np.nan), "expected sound of full scale 1"),
        (100 * np.sin(np.arange(8000.0)), "samples up to 100"),
        (np.ones(9), "expected at least 0.025 s"),
        (np.zeros((2, 2, 2)), "expected sound"),
        (np.arange(8000), "int16 or float"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(fitted, sound, message):
    with pytest.raises(InputError, match=message):
        fitted.score(sound, "fan")


def test_machines_are_told_by_folders_or_by_name(fitted, data, tmp_path):
    clip = clips_of(data, "fan")[0]
    elsewhere = tmp_path / "new" / clip.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(clip.read_bytes())
    assert fitted.score(elsewhere, "fan") == fitted.score(clip)
    with pytest.raises(
        InputError, match=r"folder called as their machine \(fan, pump\), got .*new"
    ):
        fitted.score(elsewhere)
    with pytest.raises(InputError, match="expected a machine of fan, pump, got 'mill'"):
        fitted.score(elsewhere, "mill")
    both = [clip, clips_of(data, "pump")[0]]
    assert [one.machine for one in fitted.judge(both)] == ["fan", "pump"]


def test_broken_files_are_all_named_and_may_be_left_out(fitted, data, tmp_path):
    clip, absent, empty = clips_of(data, "fan")[0], tmp_path / "absent.wav", tmp_path / "empty.wav"
    empty.write_bytes(b"")
    with pytest.raises(InputError, match="2 of 3 files cannot be used") as refused:
        fitted.judge_files([clip, absent, empty], "fan")
    assert "absent.wav" in str(refused.value)
    assert "empty.wav" in str(refused.value)
    judged = fitted.judge_files([absent, clip, empty], "fan", skip_bad=True)
    assert [one.file for one in judged.verdicts] == [str(clip)]
    assert set(judged.broken) == {absent, empty}


def test_clips_recorded_unlike_the_normal_ones_are_told(fitted, data, tmp_path):
    wave = soundfile.read(clips_of(data, "fan")[0])[0]
    soundfile.write(tmp_path / "x.wav", np.repeat(wave, 3), 48000, "PCM_24")
    lines = fitted.judge_files([tmp_path / "x.wav"], "fan").lines
    assert any("48000 Hz, 1 channel; resampled to 16000 Hz" in line for line in lines)
    assert any("PCM_24" in line and "no training clip is like that" in line for line in lines)
    assert fitted.judge_files(clips_of(data, "fan"), "fan").lines == []


def changed_header(path: Path, change) -> None:
    """Write a file again with another configuration in its header and the right checksum."""
    arrays, header, _ = weights_file.load(path)
    change(header.config)
    weights_file.save(path, arrays, header)


def test_files_that_are_no_detector_are_refused(fitted, tmp_path):
    path = tmp_path / "machine.asdjax"
    with pytest.raises(InputError, match="no such file; expected a detector"):
        Detector.load(path)
    fitted.save(path)
    whole = path.read_bytes()
    for content, message in [
        (whole[: len(whole) // 2], "not a complete safetensors file"),
        (whole[:-8] + struct.pack("d", 1.0), "its checksum is of other content; fit the detector"),
        (b"RIFF", "not a complete safetensors file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            Detector.load(path)
    fitted.save(path)
    changed_header(path, lambda config: config.update(format=99, asdjax="9.0"))
    with pytest.raises(InputError, match=rf"of asdjax 9\.0, which is newer than .*{__version__}"):
        Detector.load(path)
    fitted.save(path)
    changed_header(path, lambda config: config["machines"][0]["clips"].pop())
    with pytest.raises(InputError, match="a damaged header"):
        Detector.load(path)
    with pytest.raises(InputError, match="expected a detector, got weights of eat"):
        Detector.load(tiny_eat(tmp_path / "eat.safetensors"))


def test_other_weights_of_the_backbone_are_refused(data, tmp_path):
    weights = tiny_eat(tmp_path / "eat.safetensors")
    system = RECIPES["frozen/eat"].config
    system = system.with_backbones({system.backbones[0]: str(weights)})
    made = Detector.fit(data, system)
    made.save(tmp_path / "machine.asdjax")
    arrays, header, _ = weights_file.load(weights)
    changed = {name: value * np.float32(1.5) for name, value in arrays.items()}
    weights_file.save(weights, changed, header)
    read = Detector.load(tmp_path / "machine.asdjax")
    with pytest.raises(InputError, match="expected the weights that the detector was fitted with"):
        read.score(clips_of(data, "fan")[0])


def test_a_system_that_trains_does_so_without_the_clips_that_set_the_limit(tmp_path):
    hum_machine(tmp_path / "data", "fan", 500.0, seed=1)
    hum_machine(tmp_path / "data", "pump", 2000.0, seed=2)
    for machine in ("fan", "pump"):  # 2 blocks are too few: one of four is held out
        for i in range(10, 20):
            wave = soundfile.read(next((tmp_path / "data" / machine / "train").iterdir()))[0]
            rng = np.random.default_rng(i)
            name = f"section_00_source_train_normal_{i:04d}_spd_{i % 2}.wav"
            wave = wave + 0.01 * rng.standard_normal(len(wave))
            soundfile.write(tmp_path / "data" / machine / "train" / name, wave, 16000)
    system = small_system(tiny_eat(tmp_path / "eat.safetensors"))
    made = Detector.fit(tmp_path / "data", system, work=tmp_path / "work")
    for one in made.machines:
        assert len(one.normal.clips) == 22  # in the end all are compared with
        # 22 clips are 4 blocks, of which one is held out
        assert one.rule.hours == pytest.approx(0.5 * 5 / 3600, rel=0.3)


def test_one_clip_makes_a_detector_without_a_limit(tmp_path, capsys):
    tone_machine(tmp_path, "fan")
    one, *others = sorted((tmp_path / "fan" / "train").iterdir())
    made = Detector.fit(one, QUICK)
    assert "no limit of alarms, as there are too few clips" in capsys.readouterr().err
    verdict = made.judge(others[0])[0]
    assert np.isfinite(verdict.score)
    assert (verdict.threshold, verdict.above) == (None, None)


def test_the_header_says_what_the_file_holds(fitted, tmp_path):
    fitted.save(tmp_path / "machine.asdjax")
    data = (tmp_path / "machine.asdjax").read_bytes()
    table = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    config = json.loads(table["__metadata__"]["config"])
    assert config["asdjax"] == __version__
    assert config["system"]["scorer"]["class"] == "Knn"
    assert [one["group"] for one in config["machines"]] == [
        ["fan", "section_00"],
        ["pump", "section_00"],
    ]
    assert table["normal.0"]["dtype"] == "F32"
