from collections import Counter
from pathlib import Path

import pytest

from asdjax.data import dcase
from asdjax.data.audio import AudioInfo
from asdjax.recipes import RECIPES
from asdjax.stages.options import Options
from asdjax.stages.recordings import prepare
from asdjax.types import ANOMALY, NORMAL, Clip, DataSet, InputError, counted

# per edition: path section split domain label attributes; "-" is None or ""
EDITIONS = {
    2020: """
        dev_data/fan/train/normal_id_00_00000000.wav   id_00 train - normal -
        dev_data/fan/test/normal_id_00_00000007.wav    id_00 test - normal -
        dev_data/fan/test/anomaly_id_00_00000001.wav   id_00 test - anomaly -
        eval_data/fan/train/normal_id_01_00000000.wav  id_01 train - normal -
        eval_data/fan/test/id_01_00000000.wav          id_01 test - - -
        """,
    2021: """
        fan/train/section_00_source_train_normal_0000_strength_1_ambient.wav \
            section_00 train source normal strength_1_ambient
        fan/train/section_03_target_train_normal_0002_s_None.wav \
            section_03 train target normal s_None
        fan/source_test/section_00_source_test_anomaly_0000.wav section_00 test source anomaly -
        fan/target_test/section_03_target_test_0000.wav         section_03 test target - -
        """,
    2022: """
        dcase2022t2/eval_data/raw/ToyCar/train/section_03_source_train_normal_0000_car_A1.wav \
            section_03 train source normal car_A1
        dcase2022t2/eval_data/raw/ToyCar/test/section_03_0000.wav section_03 test - - -
        """,
    2024: """
        dcase2024t2/raw/3DPrinter/train/section_00_source_train_normal_0990_volt_1.5_n_A.wav \
            section_00 train source normal volt_1.5_n_A
        dcase2024t2/raw/slider/train/section_00_target_train_normal_0001_noAttribute.wav \
            section_00 train target normal -
        dcase2024t2/raw/slider/test/section_00_source_test_anomaly_0050_.wav \
            section_00 test source anomaly -
        """,
    2026: """
        dcase2026t2/raw/Sander/train/section_00_source_train_normal_0001_spd_1_mic_2_mic_1.wav \
            section_00 train source normal spd_1_mic_2_mic_1
        dcase2026t2/raw/Sander/test/section_00_0200.wav section_00 test - - -
        """,
}


@pytest.mark.parametrize("year", EDITIONS)
def test_every_edition_is_read_from_its_names_and_folders(make_tree, year):
    rows = [line.split() for line in EDITIONS[year].strip().splitlines()]
    root = make_tree(row[0] for row in rows)
    dataset = dcase.scan(root)
    label = {NORMAL: "normal", ANOMALY: "anomaly", None: "-"}
    assert dataset.year == year
    assert sorted(rows) == [
        [
            clip.path.relative_to(root).as_posix(),
            *(clip.section, clip.split, clip.domain or "-", label[clip.label]),
            clip.attributes or "-",
        ]
        for clip in dataset.clips
    ]
    assert all(clip.machine == clip.path.parts[-3] for clip in dataset.clips)


def test_supplemental_clips_of_2025_tell_their_kind_and_no_label(make_tree):
    kinds = {
        "section_00_machine_0001_.wav": ("clean", None, ""),
        "section_00_machine_source_0000_noAttribute.wav": ("clean", "source", ""),
        "section_00_noise_0100.wav": ("noise", None, ""),
        "section_00_other_0003_noise_6.wav": ("unknown", None, "noise_6"),
    }
    make_tree((f"fan/supplemental/{name}" for name in kinds), "dcase2025t2/raw")
    root = make_tree("dcase2025t2/raw/fan/train/section_00_source_train_normal_0000_m-n_X.wav")
    clips = dcase.scan(root).select("supplemental")
    assert {clip.name: (clip.supplement, clip.domain, clip.attributes) for clip in clips} == kinds
    assert all(clip.label is None for clip in clips)


def test_the_csv_gives_attributes_in_three_spellings_only_where_the_name_has_none(make_tree, write):
    stem = "section_00_source_train_normal_000"
    root = make_tree(
        f"fan/train/{stem}{rest}.wav"
        for rest in ("0", "1_noAttribute", "2_", "3_spd_9_mic_1", "4_noAttribute", "5_volt_1.5")
    )
    write(
        "fan/attributes_00.csv",
        "file_name,d1p,d1v,d2p,d2v\n"
        f"fan/train/{stem}0.wav,spd,1,mic,2\n"  # path from the raw directory
        f"{stem}1_noAttribute,spd,1.5,,\n"  # bare stem, fewer pairs
        f"{stem}2_.wav,spd,3\n"
        f"fan/train/{stem}3_spd_9_mic_1.wav,spd,8\n"  # the name wins
        f"{stem}4_noAttribute\n"  # hidden in both
        f"{stem}5_volt_1.5,volt,7\n",
    )
    attributes = [clip.attributes for clip in dcase.scan(root).clips]
    assert attributes == ["spd_1_mic_2", "spd_1.5", "spd_3", "spd_9_mic_1", "", "volt_1.5"]


STEM = "section_00_source_train_normal_000"


@pytest.mark.parametrize("names", [f"{STEM}0.wav", f"fan/train/{STEM}0.WAV", f"{STEM}0.flac"])
@pytest.mark.parametrize(
    "text",
    [
        "file_name,d1p,d1v\nNAME,v,1.5\n",
        "File_Name;d1p;d1v\nNAME;v;1.5",
        ",file_name,d1p,d1v\n0,NAME,v,1.5\n",
    ],
)
def test_attributes_are_read_as_people_save_them(make_tree, write, names, text):
    root = make_tree([f"fan/train/{STEM}0.wav"])
    write("fan/attributes_00.csv", text.replace("NAME", names))
    dataset = dcase.scan(root)
    assert [clip.attributes for clip in dataset.clips] == ["v_1.5"]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file,d1p,d1v\n0,car,A1\n", "line 1: expected the columns file_name"),
        (f"{STEM}0,car,A1\n", "line 1: expected the columns file_name"),
        (f"file_name,d1p,d1v\n\n{STEM}0,volt,1,5\n", "line 3: expected 3 cells .*, got 4"),
        (
            f"file_name,d1p,d1v\n{STEM}0,car,A1\n{STEM}1,car,A2\n{STEM}0.wav,car,B9\n",
            "attributes_00.csv line 4: expected the attributes car_A1 .* line 2, got car_B9",
        ),
        (f"file_name,d1p,d1v\n{STEM}7,car,A1\n", f"no row names a recording .* {STEM}7"),
    ],
)
def test_wrong_attributes_are_refused_with_their_line(make_tree, write, text, problem):
    root = make_tree([f"fan/train/{STEM}0.wav"])
    write("fan/attributes_00.csv", text)
    with pytest.raises(InputError, match=problem) as caught:
        dcase.scan(root)
    assert len(str(caught.value).splitlines()) == 2


def test_equal_rows_and_hidden_attributes_of_absent_clips_are_no_matter(make_tree, write):
    root = make_tree([f"fan/train/{STEM}0.wav", f"pump/train/{STEM}0_noAttribute.wav"])
    write("fan/attributes_00.csv", f"file_name,d1p,d1v\n{STEM}0,car,A1\n{STEM}0.wav,car,A1\n")
    write(
        "pump/attributes_00.csv", f"file_name,d1p,d1v\n{STEM}8_noAttribute\n{STEM}9,noAttribute,\n"
    )
    dataset = dcase.scan(root)
    assert [clip.attributes for clip in dataset.clips] == ["car_A1", ""]
    assert dataset.notes == ()


def test_rows_of_clips_that_were_not_downloaded_are_told(make_tree, write):
    root = make_tree([f"fan/train/{STEM}0.wav", f"pump/train/{STEM}0.wav"])
    rows = [f"{STEM}{i},car,A{i}" for i in range(7)]
    for machine, some in (("fan", rows), ("pump", rows[:2])):
        write(f"{machine}/attributes_00.csv", "\n".join(["file_name,d1p,d1v", *some]))
    (line,) = dcase.scan(root).notes
    assert line.startswith(f"attributes: 7 rows of csvs name clips that are not here: {STEM}1, ")
    assert line.endswith(" and 2 more")


@pytest.mark.parametrize(
    "name",
    [
        *("attributes_0.csv", "Attributes_00.csv", "attributes_000.csv", "attribute_00.csv"),
        *("train/attributes_00.csv", "labels.csv", "../attributes_00.csv", "../labels.csv"),
    ],
)
def test_a_csv_that_looks_like_attributes_but_is_not_read_is_refused(make_tree, write, name):
    root = make_tree([f"fan/train/{STEM}0.wav"])
    write("fan/attributes_00.csv", f"file_name,d1p,d1v\n{STEM}0,car,A1\n")
    write("fan/synthetic.csv", "")
    (root / "fan" / name).resolve().write_text(f"file_name,d1p,d1v\n{STEM}0,car,A1\n")
    with pytest.raises(InputError) as caught:
        dcase.scan(root)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith(f"- {(root / 'fan' / name).resolve()}: not read; ")


@pytest.mark.parametrize("attributes", ["", "_spd_1V"])
@pytest.mark.parametrize(
    "mark", [" (1)", "(2)", " - Copy", " - Copy (2)", " - Kopie", " - Copie", "_copy", " copy 2"]
)
def test_a_copy_by_name_is_described_as_what_it_copies(make_tree, write, mark, attributes):
    names = [f"fan/train/{STEM}0{attributes}{end}.wav" for end in ("", mark)]
    root = make_tree([*names, f"fan/train/{STEM}1_copy.wav"])  # whose original is not there
    write("fan/attributes_00.csv", f"file_name,d1p,d1v\n{STEM}0{attributes},spd,1V\n")
    dataset = dcase.scan(root)
    told = {clip.name: (clip.section, clip.attributes) for clip in dataset.clips}
    assert told == {
        f"{STEM}0{attributes}.wav": ("section_00", "spd_1V"),
        f"{STEM}0{attributes}{mark}.wav": ("section_00", "spd_1V"),
        f"{STEM}1_copy.wav": ("section_00", "copy"),
    }
    assert dataset.notes == (
        f"1 copy by name, described as the original: {STEM}0{attributes}{mark}.wav",
    )


def test_a_copy_without_its_original_is_no_name_of_the_challenge(make_tree):
    root = make_tree([f"fan/train/{STEM}0.wav", f"fan/test/{STEM}0 (1).wav"])
    with pytest.raises(InputError, match=r"fan/test: 1 names that are not .*0 \(1\)\.wav"):
        dcase.scan(root)


def test_a_copied_test_clip_has_the_label_of_what_it_copies(make_tree, write):
    names = "section_00_0000.wav,0\nsection_00_0001.wav,1\n"
    root = evaluation_part(make_tree, write, names, names)
    full = "section_00_target_test_anomaly_0001_spd_1V"
    write(
        "truth/ground_truth_attributes/ground_truth_fan_section_00_test.csv",
        f"section_00_0001.wav,{full}.wav\n",
    )
    make_tree(["raw/fan/test/section_00_0001 (1).wav"])
    clips = dcase.scan(root / "raw", root / "truth").select("test")
    assert [(clip.name, clip.label, clip.full_name) for clip in clips] == [
        ("section_00_0000.wav", NORMAL, ""),
        ("section_00_0001 (1).wav", ANOMALY, ""),  # one file has the full name
        ("section_00_0001.wav", ANOMALY, f"{full}.wav"),
    ]


def test_where_labels_come_from_is_told(make_tree, write):
    names = "section_00_0000.wav,0\nsection_00_0001.wav,1\n"
    root = evaluation_part(make_tree, write, names, names)
    make_tree(["raw/pump/train/section_00_source_train_normal_0000.wav"])
    make_tree(["raw/pump/test/section_00_source_test_anomaly_0000.wav"])
    assert dcase.scan(root / "raw").notes == (
        "labels: 0 normal, 1 anomaly from file names",
        "labels: 2 test clips without one: section_00_0000.wav, section_00_0001.wav; "
        "--ground-truth labels an evaluation set",
    )
    assert dcase.scan(root / "raw", root / "truth").notes == (
        f"labels: 1 normal, 1 anomaly from {root / 'truth'}",
        "labels: 0 normal, 1 anomaly from file names",
    )


def test_hidden_files_and_the_baselines_copies_are_not_clips(make_tree):
    root = make_tree(
        "fan/train/section_00_source_train_normal_0000.wav fan/test/section_00_0000.wav "
        "fan/test/._section_00_0000.wav fan/test_rename/section_00_source_test_normal_0000.wav "
    )
    assert [clip.name for clip in dcase.scan(root).select("test")] == ["section_00_0000.wav"]


def test_every_problem_of_a_tree_is_listed_at_once(make_tree):
    root = make_tree(
        "fan/train/section_00_source_train_normal_0000.wav "
        "fan/test/holiday.wav fan/test/section_00_source_train_normal_0001.wav "
        "fan/train/section_00_source_train_anomaly_0002.wav "  # strange or misfiled
        "fan/target_test/section_00_source_test_0001.wav "
        "valve/test/section_00_0000.wav "  # no train part
        "noise/a.wav b.wav fan/test/normal/c.flac"  # misplaced
    )
    (root / "pump" / "train").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        dcase.scan(root)
    lines = str(caught.value).splitlines()[1:]
    for path, count in ((root, 1), (root / "noise", 1), (root / "fan/test/normal", 1)):
        assert (
            sum(f"- {path}: {counted(count, 'recording')} outside" in line for line in lines) == 1
        )
    assert sum(f"- {root / 'pump'}: no wav or flac" in line for line in lines) == 1
    assert sum("valve section_00: 1 clip but none to train on" in line for line in lines) == 1
    strange = [line for line in lines if "names that are not" in line]
    assert len(strange) == 3
    assert "section_00_source_test_0001.wav" in strange[0]
    assert "holiday.wav, section_00_source_train_normal_0001.wav" in strange[1]
    assert "section_00_source_train_anomaly_0002.wav" in strange[2]
    assert len(lines) == 8


def test_two_editions_and_doubled_clips_are_refused(make_tree):
    name = "fan/train/section_00_source_train_normal_0000.wav"
    make_tree([name], "dcase2023t2/dev_data/raw")
    root = make_tree([name], "dcase2024t2/dev_data/raw")
    with pytest.raises(InputError, match="got 2023, 2024") as caught:
        dcase.scan(root)
    assert "more than once, keep one of each: fan train section_00_source" in str(caught.value)
    assert dcase.scan(root / "dcase2024t2").year == 2024
    make_tree([name], "dcase2024t2/copies/dcase2025t2")
    assert dcase.scan(root / "dcase2024t2/copies/dcase2025t2").year == 2025  # the nearest wins


@pytest.mark.parametrize(
    ("below", "year"),
    [
        ("dcase2024t2/dev_data/raw", 2024),
        ("DCASE2024T2/Eval_Data/RAW", 2024),
        ("dcase2024t2/raw", 2024),
        ("dcase2024t2", 2024),
        ("dcase2024t2/dcase2025t2/raw", 2025),
        ("dcase2024t2/mine", None),
        ("dcase2024t2/mine/raw", None),
        ("dcase2024t2_backup/raw", None),
        ("old dcase2024t2/raw", None),
        ("raw", None),
    ],
)
def test_the_year_is_that_of_the_organisers_folder_alone(make_tree, monkeypatch, below, year):
    root = make_tree([f"fan/train/{STEM}0.wav"], below) / below
    assert dcase.scan(root).year == year
    monkeypatch.chdir(root)
    assert dcase.scan(".").year == year
    monkeypatch.chdir(root / "fan")
    assert dcase.scan("..").year == year


def test_the_year_is_read_on_both_sides_of_a_link(make_tree):
    root = make_tree([f"fan/train/{STEM}0.wav"], "dcase2024t2/raw")
    (root / "data").symlink_to(root / "dcase2024t2" / "raw")
    assert dcase.scan(root / "data").year == 2024
    make_tree([f"fan/train/{STEM}0.wav"], "disk")
    (root / "dcase2023t2").symlink_to(root / "disk")
    assert dcase.scan(root / "dcase2023t2").year == 2023
    make_tree(["disk/fan/test/section_00_0000.wav"])
    assert prepare(RECIPES["frozen/logmel"].config, root / "dcase2023t2", Options()).year == 2023
    (root / "dcase2022t2").symlink_to(root / "dcase2024t2")
    with pytest.raises(InputError, match="expected one edition, got 2022, 2024"):
        dcase.scan(root / "dcase2022t2")


def test_wrong_directories_say_what_to_pass(make_tree, tmp_path):
    with pytest.raises(InputError, match="got nothing"):
        dcase.scan(tmp_path)
    with pytest.raises(InputError, match="expected a directory"):
        dcase.scan(tmp_path / "absent")
    root = make_tree("fan/train/section_00_source_train_normal_0000.wav")
    with pytest.raises(InputError, match="the folder of one machine"):
        dcase.scan(root / "fan")


def evaluation_part(make_tree, write, labels: str, domains: str) -> Path:
    write("truth/ground_truth_data/ground_truth_fan_section_00_test.csv", labels)
    write("truth/ground_truth_domain/ground_truth_fan_section_00_test.csv", domains)
    return make_tree(
        "raw/fan/train/section_00_source_train_normal_0000.wav "
        "raw/fan/test/section_00_0000.wav raw/fan/test/section_00_0001.wav"
    )


def test_ground_truth_labels_the_evaluation_clips(make_tree, write):
    names = "section_00_0001.wav,{}\nsection_00_0000.wav,{}\n"  # any order
    root = evaluation_part(make_tree, write, names.format(1, 0), names.format(0, 1))
    write(
        "truth/ground_truth_attributes/ground_truth_fan_section_00_test.csv",
        "section_00_0000.wav,section_00_target_test_normal_0009_noAttribute,"
        "section_00_target_test_normal_0009_m-n_X.wav\n",
    )
    hidden = dcase.scan(root / "raw").select("test")
    assert [(clip.label, clip.domain) for clip in hidden] == [(None, None)] * 2
    first, second = dcase.scan(root / "raw", root / "truth").select("test")
    assert (first.label, first.domain, first.attributes) == (NORMAL, "target", "m-n_X")
    assert first.full_name == "section_00_target_test_normal_0009_noAttribute.wav"
    assert (second.label, second.domain, second.full_name) == (ANOMALY, "source", "")


def test_labels_without_file_and_files_without_label_are_both_listed(make_tree, write):
    names = "section_00_0000.wav,0\nsection_00_0007.wav,1\n"
    root = evaluation_part(make_tree, write, names, names)
    with pytest.raises(InputError) as caught:
        dcase.scan(root / "raw", root / "truth")
    assert "1 labelled names have no file: fan section_00 section_00_0007" in str(caught.value)
    assert "1 test files have no label: fan section_00 section_00_0001" in str(caught.value)


def test_labels_of_machines_that_are_not_there_are_ignored_but_not_if_all_are(make_tree, write):
    names = "section_00_0000.wav,0\nsection_00_0001.wav,1\n"
    root = evaluation_part(make_tree, write, names, names)
    for kind in ("data", "domain"):
        write(f"truth/ground_truth_{kind}/ground_truth_pump_section_00_test.csv", names)
    assert len(dcase.scan(root / "raw", root / "truth").select("test")) == 2
    make_tree(["dev/gearbox/train/section_00_source_train_normal_0000.wav"])
    with pytest.raises(InputError, match="none of these labels"):
        dcase.scan(root / "dev", root / "truth")


def test_summary_counts_what_is_known_per_machine_and_section():
    def clip(name, split, domain, label, attributes=""):
        return Clip(Path(name), "fan", "section_00", split, domain, label, attributes)

    clips = (
        clip("a", "train", "source", NORMAL, "n_A"),
        clip("b", "train", "source", NORMAL, "n_A"),
        clip("c", "train", "target", NORMAL, "n_B"),
        clip("d", "test", None, None),
        clip("e", "test", "source", ANOMALY),
        clip("f", "supplemental", None, None),
        Clip(Path("z"), "ToyCar", "section_01", "train"),
    )
    infos = {
        Path("a"): AudioInfo(16_000, 16_000, 1, ""),
        Path("b"): AudioInfo(88_200, 44_100, 2, ""),
    }
    toy, fan = dcase.summarize(DataSet(Path(), clips), infos)
    assert (toy.machine, toy.section, toy.seconds, toy.rates_hz) == (
        "ToyCar",
        "section_01",
        None,
        (),
    )
    assert fan.train == Counter(source=2, target=1)
    assert fan.test == Counter({None: 1, "source": 1})
    assert fan.labels == Counter({None: 1, ANOMALY: 1})
    assert (fan.supplemental, fan.attributes, fan.seconds) == (1, 2, (1.0, 2.0))
    assert (fan.rates_hz, fan.channels) == ((16_000, 44_100), (1, 2))


# --- supplemental clips of 2025


def extra(machine, kind, number=0):
    path = Path(f"/data/{machine}/supplemental/{kind}_{number}.wav")
    return Clip(path, machine, "section_00", "supplemental", supplement=kind)


TRAIN = tuple(Clip(Path(f"{m}.wav"), m, "section_00", "train") for m in ("fan", "slider", "valve"))
EXTRA = (
    extra("fan", "clean"),
    extra("fan", "clean", 1),
    extra("slider", "noise"),
    extra("fan", "unknown"),
)
DATA = DataSet(Path("/data"), TRAIN + EXTRA, 2025)


def test_only_the_kinds_asked_for_are_taken():
    assert dcase.supplemental(DATA, ("clean",))[0] == EXTRA[:2]
    assert dcase.supplemental(DATA, ("noise",))[0] == EXTRA[2:3]
    assert dcase.supplemental(DATA, ("clean", "noise"))[0] == EXTRA[:3]


def test_the_user_is_told_of_each_machine_and_of_those_without():
    assert dcase.supplemental(DATA, ("clean", "noise"))[1] == [
        "2 clean supplemental clips of fan",
        "1 noise supplemental clip of slider",
        "no clean or noise supplemental clip of valve: left as they are",
        "1 supplemental clip left out, whose names say neither machine nor noise: unknown_0.wav",
    ]


@pytest.mark.parametrize(
    ("clips", "got"), [(TRAIN, "got none"), (TRAIN + EXTRA[2:], "got 1 noise, 1 unknown")]
)
def test_none_at_all_is_a_mistake_that_names_folder_and_field(clips, got):
    with pytest.raises(InputError, match=f"/data/./supplemental.* train.supplement .*{got}"):
        dcase.supplemental(DataSet(Path("/data"), clips), ("clean",))


def test_real_recordings(real_machines):
    dataset = dcase.scan(real_machines)
    counts = Counter((clip.machine, clip.split, clip.domain, clip.label) for clip in dataset.clips)
    expected = {  # the table in the recordings' README
        ("ToyCar", "train", "source", NORMAL): 46,
        ("ToyCar", "train", "target", NORMAL): 4,
        ("valve", "train", "source", NORMAL): 34,
        ("valve", "train", "target", NORMAL): 12,
    }
    for machine in ("ToyCar", "valve"):
        for domain in ("source", "target"):
            for label in (NORMAL, ANOMALY):
                expected[machine, "test", domain, label] = 8
    assert counts == expected
