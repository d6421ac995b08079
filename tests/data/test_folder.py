import os

import pytest
import soundfile

from asdjax.__main__ import dispatch
from asdjax.data import audio, dcase
from asdjax.recipes import RECIPES
from asdjax.stages.options import Options
from asdjax.stages.recordings import prepare
from asdjax.types import ANOMALY, NORMAL, InputError

LABELS = {NORMAL: "normal", ANOMALY: "anomaly", None: "unknown"}


def labels_of_test_clips(root) -> dict[str, str]:
    clips = dcase.scan(root).select("test")
    return {clip.path.relative_to(root).as_posix(): LABELS[clip.label] for clip in clips}


def test_wav_and_flac_of_any_name_train_is_normal_and_nothing_is_hidden(make_tree):
    root = make_tree(["fan/train/a.wav", "fan/train/Monday.FLAC", "press 2/train/0.5bar.wav"])
    dataset = dcase.scan(root)
    assert dataset.year is None
    assert [(clip.machine, clip.name) for clip in dataset.clips] == [
        ("fan", "Monday.FLAC"),
        ("fan", "a.wav"),
        ("press 2", "0.5bar.wav"),
    ]
    for clip in dataset.clips:
        told = clip.section, clip.split, clip.label, clip.domain, clip.attributes
        assert told == ("section_00", "train", NORMAL, None, "")


def test_a_word_of_the_name_labels_a_test_clip(make_tree):
    names = {
        "normal_01.wav": "normal",
        "03-Anomaly.wav": "anomaly",
        "abnormal 7.flac": "anomaly",
        "paranormal.wav": "unknown",
        "normal_or_anomaly.wav": "unknown",
        "7.wav": "unknown",
    }
    root = make_tree(["fan/train/a.wav", *(f"fan/test/{name}" for name in names)])
    assert labels_of_test_clips(root) == {f"fan/test/{name}": names[name] for name in names}


def test_labels_csv_of_the_folder_and_of_the_machine_win_over_names(make_tree, write):
    root = make_tree(
        "fan/train/a.wav fan/test/normal_1.wav fan/test/normal_2.wav fan/test/x.wav "
        "pump/train/a.wav pump/test/x.wav pump/test/y.wav"
    )
    write(
        "labels.csv",
        "attributes,file_name,label,domain\n"
        ",fan/test/normal_1.wav,anomaly,\n"
        "speed 3,normal_2.wav,,target\n"  # no label: the name's stays
        ",fan/test/x.wav,0,source\n",
    )
    write("pump/labels.csv", "file_name,label\ntest\\x.wav,1\n")
    assert labels_of_test_clips(root) == {
        "fan/test/normal_1.wav": "anomaly",
        "fan/test/normal_2.wav": "normal",
        "fan/test/x.wav": "normal",
        "pump/test/x.wav": "anomaly",
        "pump/test/y.wav": "unknown",
    }
    clips = {clip.path.stem: clip for clip in dcase.scan(root).clips if clip.machine == "fan"}
    assert (clips["normal_2"].domain, clips["normal_2"].attributes) == ("target", "speed 3")
    assert (clips["x"].domain, clips["normal_1"].domain) == ("source", None)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            "fan/test/x.wav,broken\n",
            "line 2: expected a label of normal, anomaly, 0, 1 .*x.wav,broken",
        ),
        ("fan/test/x.wav,True\n", "line 2: expected a label of normal, anomaly, 0, 1 .*x.wav,True"),
        (
            "fan/test/x.wav,\u0661\n",
            "line 2: expected a label of normal, anomaly, 0, 1 .*x.wav,\u0661",
        ),
        ("\n\nfan/test/z.wav,0\n", "line 4: expected one recording fan/test/z.wav, got none"),
        ("x.wav,0\n", "line 2: expected one recording x.wav, got several"),
        (",0\n", "line 2: expected one recording , got none"),
        (
            "fan/test/x.wav,0\nfan/test/x,0\n",
            "line 3: expected one row for a recording, got another in .*labels.csv line 2",
        ),
        ("fan/train/a.wav,1\n", "only normal clips in train/"),
        (
            "fan/test/x.wav\n",
            "line 2: expected 2 cells as in the first line, got 1: fan/test/x.wav",
        ),
        ("fan/test/x.wav,1,5\n", "line 2: expected 2 cells as in the first line, got 3: "),
        ("# by hand\n", "line 2: expected 2 cells"),
        ("fan/test/x.wav;0\n", "line 2: expected 2 cells"),
        ('"fan/test/x.wav,0\nfan/test/y.wav,0\n', "labels.csv line 2, got: unexpected end of data"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(make_tree, write, rows, problem):
    root = make_tree("fan/train/a.wav fan/test/x.wav pump/train/a.wav pump/test/x.wav")
    write("labels.csv", "file_name,label\n" + rows)
    with pytest.raises(InputError, match=problem) as caught:
        dcase.scan(root)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "header",
    [
        "name,label",
        "file_name,label,label",
        "file_name,label,Domain,domain",
        "file_name,,label",
        "file_name",
        "",
    ],
)
def test_a_header_without_a_column_or_with_one_twice_is_refused(make_tree, write, header):
    root = make_tree("fan/train/a.wav fan/test/x.wav")
    write("labels.csv", f"{header}\n")
    with pytest.raises(InputError, match=f"expected the columns file_name,label, .*got {header};"):
        dcase.scan(root)


@pytest.mark.parametrize(
    "text",
    [
        "File_Name,LABEL\na.wav,Anomaly\nb.wav,NORMAL\n",
        " label , file_name\n1 , a.wav\n0, b.wav\n",
        "file_name,label\na.wav,1.0\nb.wav,0.0\n",
        "file_name,label\na.wav,abnormal\nb.wav,normal\n",
        ",file_name,label\n0,a.wav,1\n1,b.wav,0\n",  # an index, as pandas writes it
        "file_name,label,,\na.wav,1,,,\nb.wav,0\n",  # empty columns
        "file_name;label\na.wav;1\nb.wav;0\n",
        "file_name\tlabel\na.wav\t1\nb.wav\t0\n",
        "\ufefffile_name,label\r\na.wav,1\r\nb.wav,0\r\n",
        "file_name,label\na,1\nb.WAV,0\n",
        "file_name,label\na.flac,1\n./fan/test/b.wav,0\n",
        "file_name,label\nfan\\test\\a.wav,1\ntest/b.wav,0\n",
        "file_name,label\nROOT/fan/test/a.wav,1\nROOT/fan/test/b.wav,0\n",
    ],
)
def test_labels_csv_is_read_as_people_save_it(make_tree, write, text):
    root = make_tree("fan/train/t.wav fan/test/a.wav fan/test/b.wav fan/test/c.wav")
    write("labels.csv", text.replace("ROOT", str(root)))
    labels = labels_of_test_clips(root)
    assert list(labels.values()) == ["anomaly", "normal", "unknown"]


def test_folders_in_a_name_choose_between_machines(make_tree, write, monkeypatch):
    root = make_tree("fan/train/t.wav fan/test/x.wav pump/train/t.wav pump/test/x.wav")
    write("labels.csv", f"file_name,label\nfan\\test\\x.wav,1\n{root}/pump/test/x.wav,0\n")
    monkeypatch.chdir(root)
    assert [clip.label for clip in dcase.scan(".").select("test")] == [ANOMALY, NORMAL]


def test_the_suffix_chooses_between_two_recordings_of_one_name(make_tree, write):
    root = make_tree("fan/train/t.wav fan/test/a.wav fan/test/a.flac")
    write("labels.csv", "file_name,label\na.flac,1\na.wav,0\n")
    assert labels_of_test_clips(root) == {"fan/test/a.flac": "anomaly", "fan/test/a.wav": "normal"}
    write("labels.csv", "file_name,label\na,1\n")
    with pytest.raises(InputError, match="one recording a, got several"):
        dcase.scan(root)


@pytest.mark.parametrize("name", ["l\u00fcfter", "lu\u0308fter"])
@pytest.mark.parametrize("row", ["l\u00fcfter", "lu\u0308fter"])
def test_a_letter_with_marks_is_one_however_it_is_written(make_tree, write, name, row):
    root = make_tree(["fan/train/t.wav", f"fan/test/{name}.wav", "fan/test/ b.wav"])
    write("labels.csv", f"file_name,label\n{row}.wav,1\n b.wav,0\n")
    assert list(labels_of_test_clips(root).values()) == ["normal", "anomaly"]


def test_a_european_csv_keeps_its_decimal_commas(make_tree, write):
    root = make_tree("fan/train/a.wav fan/train/b.wav")
    write("labels.csv", "file_name;label;attributes\na.wav;0;volt 1,5\nb.wav;0;volt 1,8\n")
    assert [clip.attributes for clip in dcase.scan(root).clips] == ["volt 1,5", "volt 1,8"]


def test_several_csvs_complete_each_other_and_an_empty_cell_changes_nothing(make_tree, write):
    root = make_tree("fan/train/a.wav fan/test/x.wav fan/test/y.wav")
    write("labels.csv", "file_name,label,domain,attributes\nfan/test/x,1,,speed 1\na,,source,\n")
    write("fan/labels.csv", "file_name,label\nx,anomaly\na,0\n")
    write("fan/train/labels.csv", "file_name,label,attributes\na,,speed 2\n")
    write("fan/test/labels.csv", "file_name,label,domain,attributes\ny,0,,\ntest/x,,Target,\n")
    told = [(c.name, c.label, c.domain, c.attributes) for c in dcase.scan(root).clips]
    assert told == [
        ("x.wav", ANOMALY, "target", "speed 1"),
        ("y.wav", NORMAL, None, ""),
        ("a.wav", NORMAL, "source", "speed 2"),
    ]


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [("label", "0,,", "1,,"), ("domain", ",source,", ",target,"), ("attributes", ",,A1", ",,B9")],
)
def test_csvs_that_contradict_each_other_are_refused(make_tree, write, column, first, second):
    root = make_tree("fan/train/a.wav fan/test/x.wav fan/test/y.wav")
    header = "file_name,label,domain,attributes\n"
    write("fan/labels.csv", header + f"x.wav,{first}\n")
    write("labels.csv", header + f"y.wav,,,\nx.wav,{second}\n")
    with pytest.raises(InputError) as caught:
        dcase.scan(root)
    (line,) = str(caught.value).splitlines()[1:]
    assert f"expected the {column} of {root}/fan/labels.csv line 2, which is x.wav,{first}" in line
    assert f"{root}/labels.csv line 3: " in line
    assert line.endswith(f"; correct the row x.wav,{second}")


@pytest.mark.parametrize(
    "name",
    [
        *("Labels.csv", "label.csv", "labels (1).csv", "fan/LABELS.CSV", "fan/test/Label.csv"),
        *("fan/attributes_00.csv", "attributes.csv", "fan/attributes_section_00_train.csv"),
        *("labels_test.csv", "labels.tsv", "fan/attributes_00.txt"),
    ],
)
def test_a_csv_that_looks_like_labels_but_is_not_read_is_refused(make_tree, write, name):
    root = make_tree("fan/train/a.wav fan/test/x.wav")
    write("notes.csv", "")
    write("labels_of_colours.csv", "")
    path = write(name, "file_name,label\nx.wav,1\n")
    with pytest.raises(InputError) as caught:
        dcase.scan(root)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith(f"- {path}: not read; ")


def test_all_problems_of_folders_and_csvs_are_told_at_once(make_tree, write):
    root = make_tree("fan/test/x.wav pump/train/anomaly_1.wav")
    write("labels.csv", "name,label\nx.wav,1\n")
    write("pump/labels.csv", "file_name,label\nnot_there.wav,1\n")
    with pytest.raises(InputError) as caught:
        dcase.scan(root)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 4
    assert "fan section_00: 1 clip but none to train on" in lines[0]
    assert f"{root / 'labels.csv'} line 1: expected the columns file_name,label" in lines[1]
    assert f"{root / 'pump/labels.csv'} line 2: expected one recording not_there.wav" in lines[2]
    assert str(root / "pump/train/anomaly_1.wav") in lines[3]


def test_a_csv_that_is_no_text_and_a_ground_truth_for_own_names_are_refused(make_tree):
    root = make_tree("fan/train/a.wav")
    with pytest.raises(InputError, match=r"label your own recordings in labels\.csv"):
        dcase.scan(root, root)
    (root / "labels.csv").write_text("file_name,label\na.wav,0\n", encoding="utf-16")
    (root / "fan" / "labels.csv").write_text("file_name,label\nz.wav,0\n")
    with pytest.raises(InputError) as caught:
        dcase.scan(root)
    coding, row = sorted(str(caught.value).splitlines()[1:])[::-1]
    assert "expected a csv file" in coding
    assert f"{root}/labels.csv" in coding
    assert "save it as csv in UTF-8" in coding
    assert "fan/labels.csv line 2: expected one recording z.wav" in row


def test_where_labels_come_from_is_told_and_what_is_not_used(make_tree, write):
    root = make_tree(
        "fan/train/normal_0.wav fan/test/normal_1.wav fan/test/normal_2.wav fan/test/anomaly_1.wav "
        "fan/test/no_anomaly_3.wav fan/test/7.wav fan/test/x.wav fan/test/anomaly_9.wav"
    )
    write("labels.csv", "file_name,label,speed\nx,1,3\nanomaly_9,0,3\nnormal_0,0,4\n")
    assert dcase.scan(root).notes == (
        "labels: 2 normal, 1 anomaly from file names",
        "labels: 1 normal, 1 anomaly from labels.csv",
        "labels: 2 test clips without one: 7.wav, no_anomaly_3.wav; their names do not say normal "
        "or anomaly for certain; labels.csv can",
        "labels.csv counts, not the word in the name: anomaly_9.wav",
        "columns of labels.csv that are not read: speed",
    )


def test_a_run_and_a_look_at_the_folder_print_where_labels_come_from(make_tree, capsys):
    root = make_tree("fan/train/a.wav fan/test/normal_1.wav fan/test/anomaly_1.wav")
    line = "labels: 1 normal, 1 anomaly from file names\n"
    for command in ("list", "verify"):
        dispatch(["data", command, str(root)])
        assert line in capsys.readouterr().err
    prepare(RECIPES["frozen/logmel"].config, root, Options())
    assert line in capsys.readouterr().err


def test_a_doubtful_name_is_no_anomaly_in_train(make_tree):
    root = make_tree("fan/train/no_anomaly_1.wav fan/train/normal_speed_rubbing_2.wav")
    assert {clip.label for clip in dcase.scan(root).clips} == {NORMAL}


SOURCE = "section_00_source_{}_{:04}.wav"  # challenge names, every clip of domain source
OWN_FOLDERS = {
    "one machine": "fan/train/a.wav fan/train/b.wav fan/test/normal_1.wav fan/test/anomaly_1.wav",
    "one machine, nothing to test": "fan/train/a.wav fan/train/b.wav",
    "two machines without attributes": "fan/train/a.wav fan/test/x.wav pump/train/a.wav "
    "pump/test/x.wav",
    "challenge names, one machine, no attributes": "fan/train/" + SOURCE.format("train_normal", 0),
    "challenge names, all source": " ".join(
        f"{machine}/{split}/{SOURCE.format(f'{split}_normal', i)}"
        for machine in ("fan", "pump")
        for split in ("train", "test")
        for i in range(3)
    ),
    "own names, all source": "fan/train/source_1.wav fan/train/source_2.wav fan/test/source_3.wav",
    "no labels": "fan/train/1.wav fan/train/2.wav fan/test/3.wav fan/test/4.wav",
    "wav and flac": "fan/train/a.wav fan/train/b.flac fan/train/b.wav fan/test/x.FLAC "
    "fan/test/y.WAV",
    "challenge names, wav and flac": "fan/train/section_00_source_train_normal_0000.wav "
    "fan/train/section_00_target_train_normal_0001.flac fan/test/section_00_0000.flac",
}


@pytest.mark.parametrize("names", OWN_FOLDERS.values(), ids=OWN_FOLDERS)
def test_every_recording_of_an_own_folder_is_a_clip_that_can_be_read(make_tree, names):
    root = make_tree(names)
    clips = dcase.scan(root).clips
    assert {clip.path.relative_to(root).as_posix() for clip in clips} == set(names.split())
    infos, problems = audio.verify([clip.path for clip in clips], "mean")
    assert problems == {}
    assert infos.keys() == {clip.path for clip in clips}
    for clip in clips:
        assert clip.label in ([NORMAL] if clip.split == "train" else [NORMAL, ANOMALY, None])


def test_training_clips_may_all_be_of_domain_source(make_tree, write):
    root = make_tree(OWN_FOLDERS["challenge names, all source"])
    assert {clip.domain for clip in dcase.scan(root).clips} == {"source"}
    root = make_tree("press/train/a.wav press/train/b.wav", below="own")
    write("own/labels.csv", "file_name,label,domain\na.wav,,source\nb.wav,normal,source\n")
    clips = dcase.scan(root / "own").clips
    assert [(clip.domain, clip.label) for clip in clips] == [("source", NORMAL)] * 2


def test_one_recording_kept_as_wav_and_as_flac_is_two_clips_of_one_digest(make_tree):
    root = make_tree("fan/train/a.wav fan/train/b.wav fan/test/x.wav")
    wave, rate_hz = soundfile.read(root / "fan/train/a.wav", dtype="int16")
    soundfile.write(root / "fan/train/a.flac", wave, rate_hz)
    infos, _ = audio.verify([clip.path for clip in dcase.scan(root).clips], "mean")
    assert len(infos) == 4
    assert len({info.digest for info in infos.values()}) == 3


def test_names_that_are_not_utf_8_are_refused(make_tree):
    root = make_tree("fan/train/a.wav fan/test/x.wav")
    try:
        (root / "fan/test/x.wav").rename(root / "fan/test" / os.fsdecode(b"normal_\xff.wav"))
    except OSError:
        pytest.skip("this disk has no such names")
    with pytest.raises(InputError, match=r"names that are not UTF-8; rename them: .*udcff\.wav"):
        dcase.scan(root)
