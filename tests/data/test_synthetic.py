"""Made machines: reproducible, in the challenge's layout, and physically what they claim to be."""

import csv
import hashlib
import re
import shutil
import wave
from collections import Counter, namedtuple

import numpy as np
import pytest

from asdjax.data import synthetic
from asdjax.data.synthetic import MACHINES, Fault, Plan, make, plan_machine, render, strokes
from asdjax.types import SAMPLE_RATE_HZ, InputError

SMALL = {"train_source": 5, "train_target": 2, "test_per_cell": 2, "seconds": 0.5}
# The grammar of the challenge's file names, 2021-2026, written here on its own.
NAME = re.compile(
    r"section_00_(source|target)_(train|test)_(normal|anomaly)_(\d{4})_([A-Za-z0-9_.]+)\.wav"
)
EVERY_FAULT = [(m, fault) for m, machine in MACHINES.items() for fault in machine.mechanisms]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "data", **SMALL)


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read(path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (1, 2, SAMPLE_RATE_HZ)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_same_seed_same_bytes_and_other_seed_other_sounds(made, tmp_path):
    assert files(make(tmp_path / "again", **SMALL)) == files(made)
    other = files(make(tmp_path / "other", **SMALL, seed=1))
    wavs = [name for name in files(made) if name.endswith(".wav")]
    assert set(wavs) < set(other)
    digests = {
        hashlib.sha256(tree[name]).digest() for tree in (other, files(made)) for name in wavs
    }
    assert len(digests) == 2 * len(wavs)  # and no two clips of one data set are alike


def test_a_clip_does_not_depend_on_the_others(made, tmp_path):
    """A subset of machines and fewer clips: what is there is the same."""
    few = make(tmp_path / "few", machines=["valve"], **{**SMALL, "train_source": 3})
    wavs = {name: data for name, data in files(few).items() if name.endswith(".wav")}
    assert len(wavs) == 3 + 2 + 8
    assert wavs.items() <= files(made).items()


def test_layout_names_and_counts(made):
    assert {p.name for p in made.iterdir() if p.is_dir()} == set(MACHINES)
    for machine in MACHINES:
        names = [NAME.fullmatch(p.name) for p in (made / machine).glob("*/*")]
        assert None not in names
        assert Counter(name.group(1, 2, 3) for name in names) == {
            ("source", "train", "normal"): 5,
            ("target", "train", "normal"): 2,
            **{
                (d, "test", label): 2
                for d in ("source", "target")
                for label in ("normal", "anomaly")
            },
        }
        assert all(p.parent.name == NAME.fullmatch(p.name)[2] for p in (made / machine).glob("*/*"))
        attributes = {d: {n[5] for n in names if n[1] == d} for d in ("source", "target")}
        assert len(attributes["source"]) > 1
        assert not attributes["source"] & attributes["target"]


def test_attribute_and_truth_tables(made):
    for machine in MACHINES:
        with (made / machine / "attributes_00.csv").open() as file:
            header, *rows = csv.reader(file)
        pairs = (len(header) - 1) // 2
        assert header == ["file_name", *(f"d{i}{k}" for i in range(1, pairs + 1) for k in "pv")]
        assert {row[0] for row in rows} == {
            str(p.relative_to(made)) for p in (made / machine).glob("*/*")
        }
        assert all(row[0].endswith("_" + "_".join(row[1:]) + ".wav") for row in rows)
        with (made / machine / "synthetic.csv").open() as file:
            truth = list(csv.DictReader(file))
        assert len(truth) == 8
        for row in truth:
            assert ("_anomaly_" in row["file_name"]) == (
                row["mechanism"] in MACHINES[machine].mechanisms
            )
            assert (float(row["severity"]) > 0) == bool(row["mechanism"])


def test_faults_and_operating_points_are_spread():
    """In the default data set no fault is tied to one severity or one operating point."""
    for machine in MACHINES:
        faulty = [p for p in plan_machine(machine, 100, 10, 15) if p.mechanism]
        assert {p.severity for p in faulty} == set(synthetic.SEVERITIES)
        for mechanism in MACHINES[machine].mechanisms:
            plans = [p for p in faulty if p.mechanism == mechanism]
            assert len({p.severity for p in plans}) >= 3
            points = Counter((p.domain, *p.point.values()) for p in plans)
            assert set(points.values()) <= {1, 2}  # 3 to 5 clips at a domain's 4 or 5 points


def test_clips_neither_clip_nor_are_silent(made):
    for path in made.glob("*/*/*.wav"):
        pcm = read(path).astype(float)
        assert len(pcm) == 8000
        assert np.abs(pcm).max() < 30_000, path.name
        assert 0.003 < np.sqrt(np.mean(pcm**2)) / 32768 < 0.3, path.name


@pytest.mark.parametrize("machine", MACHINES)
def test_severest_faults_at_every_point_stay_below_full_scale(machine):
    for domain in ("source", "target"):
        for i, mechanism in enumerate(MACHINES[machine].mechanisms * 4):
            clip = render(Plan(machine, "test", domain, i, mechanism, 1.0), seconds=2, seed=i)
            assert 0.02 < np.abs(clip).max() < 0.95


@pytest.mark.parametrize(("machine", "mechanism"), EVERY_FAULT)
def test_fault_differs_from_its_normal_twin_and_grows(machine, mechanism):
    """Same random state with and without the fault: only the fault is in the difference."""

    def at(severity: float, name: str = mechanism) -> np.ndarray:
        return render(Plan(machine, "test", "source", 3, name, severity), seconds=3)

    other = next(m for m in MACHINES[machine].mechanisms if m != mechanism)
    normal = at(0.0)
    np.testing.assert_array_equal(normal, at(0.0, other))
    added = [np.sqrt(np.mean((at(s) - normal) ** 2)) for s in (0.2, 0.6, 1.0)]
    assert added[-1] > 0.1 * np.sqrt(np.mean(normal**2))
    if mechanism not in ("delay", "seat"):  # a shifted tone differs fully after a short shift
        assert added == sorted(added)


def sound(
    machine: str, mechanism: str = "", seed: int = 0, seconds: int = 8, **point
) -> np.ndarray:
    """The bare machine, without room and factory noise."""
    own, rng, fault = np.random.default_rng([seed, 0]).spawn(3)
    generate = MACHINES[machine].generate
    samples = seconds * SAMPLE_RATE_HZ
    return generate(own, rng, Fault(mechanism, float(bool(mechanism)), fault), samples, **point)


def spectrum(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    amplitude = np.abs(np.fft.rfft(signal * np.hanning(len(signal)))) * 4 / len(signal)
    return np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE_HZ), amplitude


def peak(signal: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Return the frequency of the strongest line in a band."""
    hz, amplitude = spectrum(signal)
    band = (hz >= low_hz) & (hz <= high_hz)
    return hz[band][np.argmax(amplitude[band])]


def band_rms(signal: np.ndarray, center_hz: float, half_hz: float) -> float:
    hz, amplitude = spectrum(signal)
    return np.sqrt(np.sum(amplitude[np.abs(hz - center_hz) <= half_hz] ** 2))


def test_fan_blade_passing_tone():
    """Seven blades at 1500 rpm: 175 Hz, within the clip's speed spread (0.8 %, so 3 sigma)."""
    assert peak(sound("fan", spd=1500), 80, 260) == pytest.approx(7 * 1500 / 60, rel=0.024)


@pytest.mark.parametrize(("mechanism", "depth"), [("", 0.12), ("eccentric", 0.82)])
def test_gear_mesh_has_sidebands_at_the_shaft_rate(mechanism, depth):
    """A tone at 23 x shaft whose amplitude swings by `depth` once per turn has sidebands depth / 2
    there. The noise among them is read at 0.7 of the way (the driven shaft's sidebands are at 23/59
    = 0.39) and taken off; what is left of it over six clips is within 20 % of the small depth."""
    side_power = carrier_power = 0.0
    for seed in range(6):
        wave = sound("gearbox", mechanism, seed, volt=2.0, wt=0)
        mesh_hz = peak(wave, 20 * 28, 26 * 28)
        shaft_hz = mesh_hz / 23
        assert shaft_hz == pytest.approx(28, rel=0.03)  # the speed spread: 0.8 %, wobble 0.3 %
        power = {k: band_rms(wave, mesh_hz + k * shaft_hz, 4) ** 2 for k in (-1, -0.7, 0, 0.7, 1)}
        side_power += (power[-1] + power[1] - power[-0.7] - power[0.7]) / 2
        carrier_power += power[0]
    assert 2 * np.sqrt(side_power / carrier_power) == pytest.approx(depth, rel=0.2)


def test_gearbox_turns_slower_under_load_and_faster_with_voltage():
    def mesh_hz(volt: float, wt: float) -> float:
        expected = 23 * 14 * volt
        return peak(sound("gearbox", volt=volt, wt=wt), 0.85 * expected, 1.1 * expected)

    assert mesh_hz(2.0, 100) < mesh_hz(2.0, 0)
    assert mesh_hz(2.5, 0) == pytest.approx(
        1.25 * mesh_hz(2.0, 0), rel=0.01
    )  # same clip, same jitter


@pytest.mark.parametrize(("mechanism", "sign"), [("outer_race", -1), ("inner_race", +1)])
def test_bearing_defect_envelope_peaks_at_the_ball_pass_frequency(mechanism, sign):
    """BPFO, BPFI = n f (1 -+ d cos(alpha) / D) / 2, here n = 9, d/D = 0.22, alpha = 0.

    f is read from the sound itself (its first shaft order), so only slip and wobble are left.
    """
    from scipy.signal import butter, hilbert, sosfilt

    def envelope(wave: np.ndarray) -> np.ndarray:
        high = butter(4, 1800, "high", fs=SAMPLE_RATE_HZ, output="sos")
        squared = np.abs(hilbert(sosfilt(high, wave))) ** 2
        return squared - squared.mean()

    wave = sound("bearing", mechanism, vel=12)
    shaft_hz = peak(wave, 10, 14)
    expected = 9 * shaft_hz / 2 * (1 + sign * 0.22 * np.cos(0.0))
    strong = envelope(wave)
    assert peak(strong, 25, 80) == pytest.approx(expected, rel=0.01)
    healthy = envelope(sound("bearing", vel=12))
    assert band_rms(strong, expected, 0.5) > 5 * band_rms(healthy, expected, 0.5)
    if mechanism == "inner_race":  # in and out of the load zone: sidebands one shaft rate away
        for side in (-1, 1):
            line = band_rms(strong, expected + side * shaft_hz, 0.5)
            assert line > 2 * band_rms(strong, expected + 0.5 * side * shaft_hz, 0.5)


def test_slide_travels_its_length_each_stroke():
    """300 mm at the speed and acceleration asked for; speed 0 while it dwells 0.12 s."""
    speed, middle, stops = strokes(np.random.default_rng(0), 10 * SAMPLE_RATE_HZ, 600, 0.2)
    assert np.abs(speed).max() == pytest.approx(600)
    assert np.abs(np.diff(speed)).max() * SAMPLE_RATE_HZ == pytest.approx(0.2 * 9810, rel=1e-6)
    inside = stops[(stops > 0) & (stops < len(speed) - 2000)]
    place = np.cumsum(speed) / SAMPLE_RATE_HZ
    travelled = np.abs(np.diff(place[inside.astype(int) + 1]))
    np.testing.assert_allclose(travelled, 300, rtol=1e-3)  # one sample at 600 mm/s is 0.04 mm
    for stop in inside.astype(int):
        assert np.abs(speed[stop + 1 : stop + 1900]).max() == 0  # 0.12 s = 1920 samples
    crossed = middle[(middle > stops[0]) & (middle < len(speed))].astype(int)
    assert np.all(np.abs(speed[crossed]) == 600)


def test_valve_hisses_only_while_open_unless_it_leaks():
    """Pattern 00 is open 0.45 s of each second, so the quietest third of the frames is closed."""

    def closed_level(mechanism: str) -> float:
        frames = sound("valve", mechanism, pat="00").reshape(-1, 160)
        level = np.sort(np.sqrt(np.mean(frames**2, axis=1)))
        return level[: len(level) // 3].mean() / level[len(level) // 2 :].mean()

    assert closed_level("") < 0.05
    assert closed_level("leak") > 0.3


def test_valve_misses_strokes():
    def clicks(mechanism: str) -> int:
        """Frames of 10 ms with a click: far above the flow, whose level is at most 0.2."""
        frames = sound("valve", mechanism, seconds=12, pat="00").reshape(-1, 160)
        loud = np.abs(frames).max(axis=1) > 1.2
        return int(np.sum(np.diff(loud.astype(int)) == 1))

    assert 22 <= clicks("") <= 26  # 12 cycles of one opening and one closing
    assert clicks("missing") <= 18


def test_made_folder_is_kept_and_a_foreign_one_refused(made, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert make(made, **SMALL) == made
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before
    with pytest.raises(InputError, match="something else"):
        make(made, **SMALL, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="mine is there"):
        make(tmp_path / "mine", **SMALL)
    assert files(tmp_path) == {"mine/thesis.txt": b"years of work"}


def test_failures_leave_nothing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no synthetic machine pump; there are: fan, "):
        make(tmp_path / "out", machines=["fan", "pump"])
    usage = namedtuple("Usage", "total used free")(10, 10, 1000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(InputError, match="not enough room"):
            make(tmp_path / "out", **SMALL)

    def interrupt(folder, plans):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_tables", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", machines=["fan"], **SMALL)
    assert list(tmp_path.iterdir()) == []
