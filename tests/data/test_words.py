"""The label that a name gives: certain, or none."""

import pytest

from asdjax.data.words import beside, labels
from asdjax.types import ANOMALY, NORMAL

NORMALS = (
    "normal_000 normal_1 normal_48k_01 normal_dc_03 normal_long 2024-03-01_pump_normal "
    "fan_normal_volt_1.5_23 section_00_source_test_normal_0001 normal_id_02_00000001 "
    "normal_volt_1.5_wt_200_03 test_normal_00source NORMAL12 Normal-3 lüfter_normal_n_A normal.2024"
)
ANOMALIES = (
    "anomaly_000 anomaly_1 anomaly_1_08 abnormal Abnormal_11 ABNORMAL12 anomalous.7 pump-anomaly "
    "fan_abnormal_volt_1.5_23 anomaly_bearing_fault_03 cracked_blade_anomaly anomaly_10_speed_3"
)
UNKNOWN = (
    "7 OK_26 paranormal subnormal unnormal nonnormal normalized anomalyDetectionRig noanomaly "
    "ünormal normalABNORMAL normal_vs_anomaly normal_then_anomaly_at_5s "
    "no_anomaly no-anomaly-01b non_anomalous_02 not_normal_03 anomaly_free_04 anomaly-none_05 "
    "without_anomaly_05 is_anomaly_false_09 NO_ANOMALY_1 un-normal after_anomaly_repair_30 "
    "pre_anomaly_29 anomaly_0 anomaly_0_08 fan_03_anomaly_0 0_anomaly normal0_06 normal_0 "
    "ab_normal_3 isn't_normal_3 louder_than_normal_3 above_normal_pressure_2 almost_normal_3 "
    "rattle_normal_speed_1 loose_screw_normal_2 normal_knocking_04 nicht_normal_3 anomaly_ok_3 "
    "anomaly_absent_3 anomaly_less_3 ohne_anomaly_3 "
    "normal_speed_cracked_blade_34 normal_speed_rubbing normal_load_bearing_fault_32 "
    "fault_normal_load_3 defective_normal"
)


@pytest.mark.parametrize(
    ("names", "label"),
    [(NORMALS, NORMAL), (ANOMALIES, ANOMALY), (UNKNOWN, None)],
    ids=["normal", "anomaly", "unknown"],
)
def test_a_name_alone_gives_its_label_or_none(names, label):
    assert {name: labels([name])[name] for name in names.split()} == dict.fromkeys(
        names.split(), label
    )


def test_letters_with_marks_in_two_parts_are_letters():
    assert labels(["u\u0308normal_3"]) == {"u\u0308normal_3": None}


def test_0_beside_the_word_counts_clips_where_names_alike_go_on_to_2_or_have_both_labels():
    counters = [f"2024-03-01_{word}_{i}" for word in ("normal", "anomaly") for i in (0, 1)]
    flags = ["monday_4_anomaly_0", "monday_5_anomaly_1", "monday_anomaly_2"]
    found = labels([*counters, "2024-03-02_normal_2", *flags])
    assert [found[name] for name in counters] == [NORMAL, NORMAL, ANOMALY, ANOMALY]
    assert [found[name] for name in flags] == [None, ANOMALY, ANOMALY]


def test_words_behind_normal_may_follow_where_a_name_alike_has_an_anomaly():
    names = ["normal_test_source3", "fan_normal_load_high_3", "normal_speed_rubbing_3"]
    alike = ["anomaly_test_source0", "fan_abnormal_load_high_12", "anomaly_speed_knocking_3"]
    found = labels([*names, *alike])
    assert [found[name] for name in names] == [NORMAL, NORMAL, None]
    assert [found[name] for name in alike] == [ANOMALY] * 3


def test_words_that_one_label_has_alone_are_found():
    names = ["fan_normal_dc_01", "fan_normal_3", "fan_anomaly_hum_2", "pump_x_anomaly", "dc_4"]
    assert beside(labels(names)) == ["dc (normal)", "hum (anomaly)", "pump (anomaly)"]
