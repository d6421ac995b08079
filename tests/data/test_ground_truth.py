from pathlib import Path

import pytest

from asdjax.data import ground_truth
from asdjax.types import ANOMALY, NORMAL, Clip, InputError

DATA = "ground_truth_data/ground_truth_{}_section_{}_test.csv"
DOMAIN = "ground_truth_domain/ground_truth_{}_section_{}_test.csv"
FULL = "ground_truth_attributes/ground_truth_{}_section_{}_test.csv"


def clip(name, machine, section, domain, label, attributes="", full_name=""):
    return Clip(Path(name), machine, section, "test", domain, label, attributes, full_name)


def test_2020_is_one_list_with_a_line_per_machine(tmp_path, write):
    text = "fan\nid_01_00000000.wav,normal_id_01_00000098.wav,0\n\n3D_x\n"
    write("eval_data_list.csv", text + "id_02_00000001.wav,anomaly_id_02_00000003.wav,1\n")
    assert ground_truth.read(tmp_path) == [
        clip(
            *("id_01_00000000.wav", "fan", "id_01", None, NORMAL),
            full_name="normal_id_01_00000098.wav",
        ),
        clip(
            *("id_02_00000001.wav", "3D_x", "id_02", None, ANOMALY),
            full_name="anomaly_id_02_00000003.wav",
        ),
    ]


def test_the_label_column_of_2020_decides_as_in_the_evaluator(write):
    file = write("list.csv", "fan\nid_01_00000000.wav,normal_id_01_00000098.wav,1\n")
    assert ground_truth.read(file)[0].label == ANOMALY


def test_2021_has_a_file_per_domain_and_nothing_else(tmp_path, write):
    write(DATA.format("fan", "03_source"), "section_03_source_test_0000.wav,1\n")
    write(DATA.format("fan", "03_target"), "section_03_target_test_0000.wav,0\n")
    assert ground_truth.read(tmp_path) == [
        clip("section_03_source_test_0000.wav", "fan", "section_03", "source", ANOMALY),
        clip("section_03_target_test_0000.wav", "fan", "section_03", "target", NORMAL),
    ]


def test_2022_attributes_are_read_except_those_of_the_toys_which_contradict_the_labels(
    tmp_path, write
):
    for machine in ("fan", "ToyCar", "ToyTrain"):
        write(DATA.format(machine, "03"), "section_03_0000.wav,0\n")
        write(DOMAIN.format(machine, "03"), "section_03_0000.wav,1\n")
        write(
            f"ground_truth_attributes/{machine}/attributes_03.csv",
            "file_name,d1p,d1v,file_name_with_full_attributes\n"
            f"{machine}/test/section_03_0000.wav,m-n,X,"
            f"{machine}/test/section_03_target_test_normal_0000_m-n_X_noise_6.wav\n",
        )
    full_name = "section_03_target_test_normal_0000_m-n_X_noise_6.wav"
    common = "section_03", "target", NORMAL
    assert ground_truth.read(tmp_path) == [
        clip("section_03_0000.wav", "ToyCar", *common),
        clip("section_03_0000.wav", "ToyTrain", *common),
        clip("section_03_0000.wav", "fan", *common, "m-n_X_noise_6", full_name),
    ]


def test_from_2023_full_names_come_with_attributes_and_2024_with_true_ones(tmp_path, write):
    rows = {
        "HairDryer": "section_00_source_test_normal_0000_volt_1.5_wt_200",
        "RoboticArm": "section_00_target_normal_0061_weight25_BckgE",  # lacks `_test_`
        "AirCompressor": "section_00_source_test_anomaly_0169_noAttribute,"
        "section_00_source_test_anomaly_0169_fl_2_nos_3.wav",
    }
    for machine, row in rows.items():
        write(DATA.format(machine, "00"), "section_00_0001.wav,1\n")
        write(DOMAIN.format(machine, "00"), "section_00_0001.wav,0\n")
        write(FULL.format(machine, "00"), f"section_00_0001.wav,{row}\n")
    told = {c.machine: (c.full_name, c.attributes) for c in ground_truth.read(tmp_path)}
    assert told == {
        "HairDryer": (
            "section_00_source_test_normal_0000_volt_1.5_wt_200.wav",
            "volt_1.5_wt_200",
        ),
        "RoboticArm": ("section_00_target_normal_0061_weight25_BckgE.wav", "weight25_BckgE"),
        "AirCompressor": ("section_00_source_test_anomaly_0169_noAttribute.wav", "fl_2_nos_3"),
    }


def test_a_list_of_the_baseline_gives_label_and_domain_by_the_full_name(write):
    file = write(
        "eval_data_list_2025.csv",
        "ToyPet\nsection_00_0127.wav,section_00_target_test_anomaly_0127_vol_14250.wav\n",
    )
    full_name = "section_00_target_test_anomaly_0127_vol_14250.wav"
    assert ground_truth.read(file) == [
        clip(
            "section_00_0127.wav", "ToyPet", "section_00", "target", ANOMALY, "vol_14250", full_name
        )
    ]


def test_the_list_of_2022_is_refused_for_its_wrong_labels(write):
    file = write("eval_data_list_2022.csv", "fan\na,b\n")
    with pytest.raises(InputError, match="pass the folder of the 2022 evaluator"):
        ground_truth.read(file)


def test_nothing_or_several_editions_are_refused(tmp_path, write):
    with pytest.raises(InputError, match="got neither"):
        ground_truth.read(tmp_path)
    write("eval_data_list_2023.csv", "")
    write("eval_data_list_2024.csv", "")
    with pytest.raises(InputError, match=r"got eval_data_list_2023\.csv, eval_data_list_2024\.csv"):
        ground_truth.read(tmp_path)


def test_all_wrong_rows_are_listed_at_once(tmp_path, write):
    write(DATA.format("fan", "00"), "section_00_0000.wav,0\nsection_00_0000.wav,0\nb.wav,2\n")
    write(DOMAIN.format("fan", "00"), "section_00_0000.wav,0\nsection_00_0009.wav,0\n")
    write(FULL.format("fan", "00"), "section_00_0000.wav\n")
    write("ground_truth_data/notes.csv", "section_00_0000.wav,0\n")
    with pytest.raises(InputError) as caught:
        ground_truth.read(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    expected = (
        "line 2: section_00_0000.wav is there twice",
        "line 3: expected <name>.wav,<0 or 1>, got b.wav,2",
        "section_00_0009.wav",
        "expected <name>.wav,<full name>, got section_00_0000.wav",
        "expected the name ground_truth_<machine>",
    )
    assert len(lines) == len(expected)
    for line, problem in zip(lines, expected, strict=True):
        assert problem in line


def test_wrong_rows_of_a_list_are_listed_at_once(write):
    row = "id_01_00000000.wav,normal_id_01_00000098.wav,0\n"
    file = write("list.csv", f"{row}fan\n{row}{row}id_01_00000001.wav,what.wav,1\n")
    with pytest.raises(InputError) as caught:
        ground_truth.read(file)
    before_machine, twice, strange = str(caught.value).splitlines()[1:]
    assert "line 1: " in before_machine
    assert "got id_01_00000000.wav,normal_id" in before_machine
    assert "line 4: fan id_01_00000000.wav is there twice" in twice
    assert "line 5: " in strange
    assert "what.wav" in strange


def test_a_missing_domain_file_is_refused(tmp_path, write):
    write(DATA.format("fan", "00"), "section_00_0000.wav,0\n")
    with pytest.raises(InputError, match=r"ground_truth_domain.*No such file"):
        ground_truth.read(tmp_path)
