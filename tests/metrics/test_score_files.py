"""Round trip of the challenge's csv pair, its spellings, and everything that can be wrong in it."""

import numpy as np
import pytest

from asdjax.metrics.score_files import load, save
from asdjax.types import InputError, Scores

NAMES = ("section_00_0002.wav", "section_00_0000.wav", "a, b.wav")
VALUES = np.array([0.1 + 0.2, -1e-300, 123456789.123456789])


def scores(machine="fan", section="section_00", decided=True, domain=None) -> Scores:
    decisions = np.array([1, 0, 1]) if decided else None
    return Scores(machine, section, NAMES, VALUES, decisions, domain)


def assert_equal(left: Scores, right: Scores):
    for field in ("machine", "section", "domain", "names"):
        assert getattr(left, field) == getattr(right, field)
    np.testing.assert_array_equal(left.values, right.values)  # every digit
    assert (left.decisions is None) == (right.decisions is None)
    if left.decisions is not None:
        np.testing.assert_array_equal(left.decisions, right.decisions)


def write(folder, name: str, text: str):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def error_text(folder) -> str:
    with pytest.raises(InputError) as error:
        load(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (
            scores(),
            {"anomaly_score_fan_section_00_test.csv", "decision_result_fan_section_00_test.csv"},
        ),
        (scores(decided=False), {"anomaly_score_fan_section_00_test.csv"}),
        (
            scores("3DPrinter", "section_03", domain="target"),
            {
                "anomaly_score_3DPrinter_section_03_target_test.csv",
                "decision_result_3DPrinter_section_03_target_test.csv",
            },
        ),
        (scores("slider", "id_06", decided=False), {"anomaly_score_slider_id_06.csv"}),
        (scores("my_pump id_2", decided=False), {"anomaly_score_my_pump id_2_section_00_test.csv"}),
    ],
)
def test_round_trip_under_the_challenge_s_names(tmp_path, given, files):
    save(tmp_path / "scores", given)
    assert {path.name for path in (tmp_path / "scores").iterdir()} == files
    (read,) = load(tmp_path)
    assert_equal(read, given)


def test_files_have_no_header_and_plain_numbers(tmp_path):
    save(tmp_path, scores())
    text = (tmp_path / "anomaly_score_fan_section_00_test.csv").read_text()
    assert text.splitlines()[:2] == [
        "section_00_0002.wav,0.30000000000000004",
        "section_00_0000.wav,-1e-300",
    ]
    text = (tmp_path / "decision_result_fan_section_00_test.csv").read_text()
    assert text == 'section_00_0002.wav,1\nsection_00_0000.wav,0\n"a, b.wav",1\n'


def test_saving_without_decisions_removes_the_old_ones(tmp_path):
    save(tmp_path, scores())
    save(tmp_path, scores(decided=False))
    assert load(tmp_path)[0].decisions is None


def test_many_files_come_sorted_from_any_depth(tmp_path):
    save(tmp_path / "b", scores("fan"))
    save(tmp_path / "a" / "c", scores("ToyCar", "section_03", domain="target"))
    save(tmp_path, scores("ToyCar", "section_03", domain="source"))
    save(tmp_path, scores("ToyCar", "id_01"))
    assert [(s.machine, s.section, s.domain) for s in load(tmp_path)] == [
        ("ToyCar", "id_01", None),
        ("ToyCar", "section_03", "source"),
        ("ToyCar", "section_03", "target"),
        ("fan", "section_00", None),
    ]


@pytest.mark.parametrize("machine", ["bandsaw", "3DPrinter", "ToyNscale"])
@pytest.mark.parametrize("tail", ["_Eval", ""])
def test_the_baseline_s_spelling_is_read(tmp_path, machine, tail):
    part = f"DCASE2024T2{machine}_section_00_test_seed13711_id(0_){tail}.csv"
    write(tmp_path, f"anomaly_score_{part}", "a.wav,1.5\nb.wav,2\n")
    write(tmp_path, f"decision_result_{part}", "b.wav,1\na.wav,0\n")
    (read,) = load(tmp_path)
    expected = Scores(
        machine, "section_00", ("a.wav", "b.wav"), np.array([1.5, 2]), np.array([0, 1])
    )
    assert_equal(read, expected)


def test_blank_lines_spaces_windows_ends_and_byte_order_mark_are_no_matter(tmp_path):
    path = tmp_path / "anomaly_score_fan_id_01.csv"
    path.write_bytes(b"\xef\xbb\xbfa.wav, 1e-3\r\n\r\n b.wav,2\r\n")
    (read,) = load(tmp_path)
    assert read.names == ("a.wav", " b.wav")  # a name may begin with a blank
    np.testing.assert_array_equal(read.values, [1e-3, 2])


def test_nothing_there_is_refused(tmp_path):
    assert f"_section_00_test.csv files below {tmp_path}" in error_text(tmp_path)
    assert "missing" in error_text(tmp_path / "missing")


def test_every_problem_is_listed_at_once(tmp_path):
    bad = {
        "anomaly_score_a_section_00_test.csv": "x.wav,1\ny.wav\nz.wav,up\n,3\nu.wav,nan\nv.wav,inf",
        "anomaly_score_b_section_00_test.csv": "x.wav,1\ny.wav,2\nx.wav,1\n",
        "anomaly_score_c_section_00_test.csv": "",
        "anomaly_score_d_section_00_test.csv": "x.wav,1\ny.wav,2\n",
        "decision_result_d_section_00_test.csv": "x.wav,1\nw.wav,0\n",
        "anomaly_score_e_section_00_test.csv": "x.wav,1\n",
        "decision_result_e_section_00_test.csv": "x.wav,0.7\n",
        "decision_result_f_section_00_test.csv": "x.wav,1\n",
        "anomaly_score_g_00.csv": "x.wav,1\n",
        "anomaly_score_h_section_00_test.csv": "x.wav,1\n",
        "more/anomaly_score_DCASE2024T2h_section_00_test_seed1_id(0_).csv": "x.wav,1\n",
    }
    for name, text in bad.items():
        write(tmp_path, name, text)
    (tmp_path / "anomaly_score_i_section_00_test.csv").write_bytes(b"RIFF\xff\xfe\x00\x00WAVE")
    text = error_text(tmp_path)
    lines = {key: next(x for x in text.splitlines() if f"score_{key}" in x) for key in "abcgi"}
    wrong = "line 2 'y.wav', line 3 'z.wav,up', line 4 ',3', line 5 'u.wav,nan', line 6 'v.wav,inf'"
    assert lines["a"].endswith(f"expected rows <file>.wav,<finite number>, got {wrong}")
    assert lines["b"].endswith("more than one row for x.wav")
    assert lines["c"].endswith("no rows")
    assert f"{tmp_path / 'anomaly_score_d_section_00_test.csv'}: w.wav, y.wav" in text
    assert "expected rows <file>.wav,<0 or 1>, got line 1 'x.wav,0.7'" in text
    assert "decision_result_f_section_00_test.csv: no anomaly_score file belongs to it" in text
    assert "expected the name anomaly_score_<machine>_section_<SS>_test.csv" in lines["g"]
    assert "are for the same clips" in text
    assert "not a csv text file" in lines["i"]
    assert len(text.splitlines()) == 1 + 9


@pytest.mark.parametrize("text", ["1_0", "1_000.5", "\u0661", "\uff11", "1e1_0"])
@pytest.mark.parametrize("kind", ["anomaly_score", "decision_result"])
def test_what_only_python_takes_for_a_number_is_refused(tmp_path, kind, text):
    write(tmp_path, "anomaly_score_fan_section_00_test.csv", "x.wav,1\ny.wav,2\n")
    write(tmp_path, f"{kind}_fan_section_00_test.csv", f"x.wav,1\ny.wav,{text}\n")
    assert f"line 2 'y.wav,{text}'" in error_text(tmp_path)


def test_a_quote_that_is_not_closed_hides_no_rows(tmp_path):
    write(tmp_path, "anomaly_score_fan_section_00_test.csv", 'x.wav,1\n"y.wav,2\nz.wav,3\n')
    assert "not a csv text file (unexpected end of data)" in error_text(tmp_path)


def test_a_name_that_would_be_read_otherwise_is_not_written(tmp_path):
    for wrong in (scores("DCASE2024T2fan"), scores(section="00"), scores("up/fan")):
        with pytest.raises(InputError, match="cannot name a score file"):
            save(tmp_path, wrong)
    assert list(tmp_path.iterdir()) == []


def test_names_and_values_of_different_length_write_nothing(tmp_path):
    short = Scores("fan", "section_00", NAMES[:2], VALUES)
    with pytest.raises(ValueError, match="zip"):
        save(tmp_path, short)
    assert list(tmp_path.iterdir()) == []
