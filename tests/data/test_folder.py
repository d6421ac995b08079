import pytest

from asdjax.data import audio, dcase
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
        ("fan/test/x.wav,broken\n", "expected a label of normal, anomaly, 0, 1 .*x.wav,broken"),
        ("fan/test/z.wav,0\n", "expected one recording fan/test/z.wav, got none"),
        ("x.wav,0\n", "expected one recording x.wav, got several"),
        ("fan/test/x.wav,0\nfan/test/x.wav,0\n", "got one named twice"),
        ("fan/train/a.wav,1\n", "only normal clips in train/"),
        ("fan/test/x.wav\n", "expected a label .*got fan/test/x.wav"),
    ],
)
def test_a_wrong_row_is_refused(make_tree, write, rows, problem):
    root = make_tree("fan/train/a.wav fan/test/x.wav pump/train/a.wav pump/test/x.wav")
    write("labels.csv", "file_name,label\n" + rows)
    with pytest.raises(InputError, match=problem):
        dcase.scan(root)


def test_all_problems_of_folders_and_csvs_are_told_at_once(make_tree, write):
    root = make_tree("fan/test/x.wav pump/train/anomaly_1.wav")
    write("labels.csv", "name,label\nx.wav,1\n")
    write("pump/labels.csv", "file_name,label\nnot_there.wav,1\n")
    with pytest.raises(InputError) as caught:
        dcase.scan(root)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 4
    assert "fan section_00: 1 clips but none to train on" in lines[0]
    assert f"{root / 'labels.csv'}: expected columns file_name,label" in lines[1]
    assert f"{root / 'pump/labels.csv'}: expected one recording not_there.wav" in lines[2]
    assert str(root / "pump/train/anomaly_1.wav") in lines[3]


def test_a_csv_that_is_no_text_and_a_ground_truth_for_own_names_are_refused(make_tree):
    root = make_tree("fan/train/a.wav")
    with pytest.raises(InputError, match=r"label your own recordings in labels\.csv"):
        dcase.scan(root, root)
    (root / "labels.csv").write_bytes(b"\xff\xfe\x00label")
    with pytest.raises(InputError, match=r"expected a csv file .*labels\.csv"):
        dcase.scan(root)


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
    clips = dcase.scan(make_tree("fan/train/a.wav fan/train/a.flac fan/test/x.wav")).clips
    infos, _ = audio.verify([clip.path for clip in clips], "mean")
    assert len(clips) == 3
    assert len({info.digest for info in infos.values()}) == 1  # all of them are the same noise
