"""Finished work is kept, copied, refused or built again, by what it was made from."""

import json
import shutil

import jax
import pytest

from asdjax.artifact import (
    FILE,
    MOST_DIFFERENCES,
    Product,
    differences,
    forget,
    gather,
    is_finished,
    make,
)
from asdjax.files import content_of
from asdjax.types import InputError

KEY = {"train": {"steps": 6, "heads": [{"margin": 0.2}]}, "weights": content_of("weights")}
OTHER = {"train": {"steps": 8, "heads": [{"margin": 0.2}]}, "weights": content_of("others")}


def product(folder, key=KEY, name="model", beside=("labels.json",)):
    return Product(folder, name, key, beside)


def builder(one, text="made"):
    """Return a function that writes a product and what is beside it, and a list of its calls."""
    calls = []

    def build():
        calls.append(text)
        for path in (one.path, *(one.folder / name for name in one.beside)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{path.name}: {text}")

    return build, calls


def built(folder, **fields):
    """Return a finished product."""
    one = product(folder, **fields)
    assert make(one, builder(one)[0]) == "built"
    return one


def is_kept(one, **options):
    """Return whether another call keeps the product and changes nothing."""
    before = contents(one.folder)
    build, calls = builder(one, "again")
    done = make(one, build, **options)
    assert (done == "kept") == (not calls) == (contents(one.folder) == before)
    return done == "kept"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Kept and built


def test_a_product_is_built_once(tmp_path):
    one = product(tmp_path)
    assert not is_finished(one)
    build, calls = builder(one)
    assert make(one, build) == "built"
    assert make(one, build) == "kept"
    assert calls == ["made"]
    assert is_finished(one)
    assert one.path.read_text() == "model: made"


def test_force_builds_it_again(tmp_path):
    one = built(tmp_path)
    build, _ = builder(one, "again")
    assert make(one, build, force=True) == "built"
    assert one.path.read_text() == "model: again"
    assert is_finished(one)


def test_a_key_is_plain_json(tmp_path):
    """Tuples are lists when they are read back; what is no JSON is no key."""
    one = built(tmp_path, key={"a": (1, 2)})
    assert one.key == {"a": [1, 2]}
    assert is_kept(product(tmp_path, key={"a": [1, 2]}))
    with pytest.raises(TypeError):
        product(tmp_path, key={"a": {1, 2}})


def test_products_of_a_folder_do_not_touch_each_other(tmp_path):
    fan, pump = (built(tmp_path, name=f"embeddings/{m}.npz", beside=()) for m in ("fan", "pump"))
    assert set(json.loads((tmp_path / FILE).read_text())) == {fan.name, pump.name}
    pump.path.unlink()
    assert is_finished(fan)
    assert not is_finished(pump)
    forget(fan)
    assert not is_finished(fan)
    assert set(json.loads((tmp_path / FILE).read_text())) == {pump.name}


def test_processes_that_finish_products_at_once_undo_nothing_of_each_other(tmp_path, monkeypatch):
    """Each has a list of its own; what the first makes anew is not what another saw before."""
    old, new = (product(tmp_path, key, "fan", ()) for key in (KEY, OTHER))
    pump, valve = (product(tmp_path, OTHER, name, ()) for name in ("pump", "valve"))
    make(old, builder(old)[0])
    for one, number in ((pump, 1), (new, 0), (valve, 0)):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        assert make(one, builder(one)[0], alone=True) == "built"
    for _ in range(2):
        assert all(map(is_finished, (new, pump, valve)))
        assert not is_finished(old)
        gather(tmp_path)
    assert sorted(json.loads((tmp_path / FILE).read_text())) == ["fan", "pump", "valve"]
    assert len(list(tmp_path.glob("finished*"))) == 1


def test_a_folder_is_a_product_with_all_that_is_in_it(tmp_path):
    one = product(tmp_path, name="scores", beside=())
    inside = tmp_path / "scores" / "fan" / "section_00.csv"

    def build():
        inside.parent.mkdir(parents=True)
        inside.write_text("1")
        (tmp_path / "scores" / "all.csv").write_text("2")

    assert make(one, build) == "built"
    assert one.files() == ["scores/all.csv", "scores/fan/section_00.csv"]
    (tmp_path / "other.csv").write_text("not of it")
    assert is_finished(one)
    inside.write_text("3")
    assert not is_finished(one)
    inside.write_text("1")
    assert is_finished(one)
    (tmp_path / "scores" / ".DS_Store").write_text("of a file manager")
    assert is_finished(one)
    (tmp_path / "scores" / "more.csv").write_text("4")
    assert not is_finished(one)


# What makes it unfinished


def test_an_interrupted_build_is_not_finished(tmp_path):
    one = product(tmp_path)

    def interrupted():
        builder(one, "half")[0]()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(one, interrupted)
    assert one.path.read_text() == "model: half"  # for the build that resumes
    assert not is_finished(one)
    assert not is_kept(one, replaces=False)
    with pytest.raises(KeyboardInterrupt):  # when it was finished before, too
        make(one, interrupted, force=True)
    assert not is_finished(one)


@pytest.mark.parametrize("name", ["model", "labels.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("x" * path.stat().st_size),  # as long as before
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.unlink(),
    ],
    ids=["changed", "truncated", "removed"],
)
def test_what_was_damaged_is_not_finished(tmp_path, name, damage):
    one = built(tmp_path)
    damage(tmp_path / name)
    assert not is_finished(one)
    assert not is_kept(one)
    assert is_finished(one)


@pytest.mark.parametrize(
    "damage", [b"", b'{"model": {"key"', b"\xff\xfe", b"[1]", b'{"model": {}}', None]
)
def test_a_damaged_list_of_what_is_finished_counts_as_none(tmp_path, damage):
    one = built(tmp_path)
    (tmp_path / FILE).unlink() if damage is None else (tmp_path / FILE).write_bytes(damage)
    assert not is_finished(one)
    assert not is_kept(one, replaces=False)
    assert is_finished(one)


def test_times_and_paths_do_not_matter(tmp_path):
    built(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    copy = product(tmp_path / "b")
    copy.path.touch()
    assert is_kept(copy, replaces=False)


# Another key


def test_a_product_of_another_key_is_replaced_where_that_is_allowed(tmp_path):
    built(tmp_path)
    one = product(tmp_path, OTHER)
    assert not is_finished(one)
    assert make(one, builder(one, "other")[0]) == "built"
    assert one.path.read_text() == "model: other"
    assert is_finished(one)
    assert not is_finished(product(tmp_path))


def test_else_it_is_refused_in_words_and_left_alone(tmp_path):
    built(tmp_path)
    before = contents(tmp_path)
    one = product(tmp_path, OTHER)
    build, calls = builder(one)
    with pytest.raises(InputError) as refused:
        make(one, build, replaces=False)
    said = str(refused.value).splitlines()
    assert said[0].startswith(f"{tmp_path / 'model'} is there already")
    assert said[1:-1] == ["  train.steps: 6 before, 8 now", "  weights differs"]
    assert "--out" in said[-1]
    assert "--force" in said[-1]
    assert not any(key["weights"].split(":")[1] in str(refused.value) for key in (KEY, OTHER))
    assert not calls
    assert contents(tmp_path) == before
    assert make(one, build, replaces=False, force=True) == "built"


def test_a_finished_product_that_was_changed_is_not_replaced_unasked(tmp_path):
    one = built(tmp_path)
    one.path.write_text("edited by hand")
    with pytest.raises(InputError, match="was changed after it was finished"):
        make(one, builder(one)[0], replaces=False)
    one.path.unlink()  # there is nothing to lose
    assert make(one, builder(one)[0], replaces=False) == "built"


# Other folders


def test_a_product_is_copied_from_the_first_folder_that_has_it(tmp_path):
    built(tmp_path / "other", key=OTHER)
    first, second = (product(tmp_path / name) for name in ("first", "second"))
    for source in (first, second):
        make(source, builder(source, source.folder.name)[0])
    reuse = [tmp_path / name for name in ("none", "other", "first", "second")]
    before = contents(first.folder)
    one = product(tmp_path / "new")
    build, calls = builder(one)
    assert make(one, build, reuse=reuse) == f"copied from {first.folder}"
    assert not calls
    assert one.path.read_text() == "model: first"
    assert (one.folder / "labels.json").read_text() == "labels.json: first"
    assert is_finished(one)
    assert make(one, build, reuse=reuse) == "kept"
    assert contents(first.folder) == before


def test_a_damaged_one_is_not_copied(tmp_path):
    source = built(tmp_path / "source")
    source.path.write_text("changed")
    one = product(tmp_path / "new")
    assert make(one, builder(one)[0], reuse=[source.folder]) == "built"


def test_force_does_not_copy(tmp_path):
    built(tmp_path / "source")
    one = product(tmp_path / "new")
    done = make(one, builder(one, "own")[0], reuse=[tmp_path / "source"], force=True)
    assert (done, one.path.read_text()) == ("built", "model: own")


def test_a_copy_does_not_replace_another_training_either(tmp_path):
    built(tmp_path / "source", key=OTHER)
    built(tmp_path / "own")
    one = product(tmp_path / "own", OTHER)
    with pytest.raises(InputError, match="is there already"):
        make(one, builder(one)[0], reuse=[tmp_path / "source"], replaces=False)
    done = make(one, builder(one)[0], reuse=[tmp_path / "source"])
    assert done == f"copied from {tmp_path / 'source'}"


def test_folders_are_copied_with_all_that_is_in_them(tmp_path):
    source = product(tmp_path / "source", name="figures", beside=())
    inside = "figures/fan/a.png"

    def build():
        (source.folder / inside).parent.mkdir(parents=True)
        (source.folder / inside).write_text("picture")

    make(source, build)
    one = product(tmp_path / "new", name="figures", beside=())
    assert make(one, builder(one)[0], reuse=[source.folder]).startswith("copied")
    assert one.files() == [inside]
    assert (one.folder / inside).read_text() == "picture"


# What differs


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        (
            {"a": 1, "b": None},
            {"a": 2.0, "b": "x"},
            ["a: 1 before, 2.0 now", 'b: null before, "x" now'],
        ),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1]}}, ["a.b.1: 2 before, nothing now"]),
        ({"a": []}, {"a": [3]}, ["a: [] before, nothing now", "a.0: nothing before, 3 now"]),
        ({"b": 1}, {"a": content_of(1), "b": 1}, ["a: nothing before, something now"]),
        ({"a": content_of(1)}, {"a": "name"}, ['a: something before, "name" now']),
        ({"a": [content_of(1)]}, {"a": [content_of(2)]}, ["a.0 differs"]),
        (
            {"a": {"b": 1, "c": 2}},
            {"d": 3},
            ["a: something before, nothing now", "d: nothing before, 3 now"],
        ),
        (
            {"of": {"fan": {"clips": 1}}},
            {"of": {"fan": {"clips": 1}, "pump": {"clips": 2, "content": content_of(1)}}},
            ["of.pump: nothing before, something now"],
        ),
        (
            {"data_sha256": "e3b0"},
            {"asdjax": "1.0", "data": 3},
            ["asdjax: an earlier version before, 1.0 now"],
        ),
    ],
)
def test_differences_in_words(before, now, lines):
    assert differences(before, now) == lines


def test_many_differences_are_counted():
    now = {f"{i:02}": i for i in range(MOST_DIFFERENCES + 5)}
    lines = differences({"00": "x"}, now)
    assert len(lines) == MOST_DIFFERENCES + 1
    assert lines[0] == '00: "x" before, 0 now'
    assert lines[-1] == "and 5 more"


# Several processes


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("asdjax.artifact.leads", lambda: False)
    monkeypatch.setattr("asdjax.artifact.agree", lambda values: None)
    source, one = product(tmp_path / "source"), product(tmp_path / "new")
    assert make(source, lambda: None) == "built"
    assert not tmp_path.joinpath("source").exists()
    monkeypatch.undo()
    built(tmp_path / "source")
    monkeypatch.setattr("asdjax.artifact.leads", lambda: False)
    assert make(one, builder(one)[0], reuse=[tmp_path / "source"]).startswith("copied")
    assert not (tmp_path / "new").exists()


def test_processes_agree_on_what_is_finished_and_where(tmp_path, monkeypatch):
    agreed = []
    monkeypatch.setattr("asdjax.artifact.agree", agreed.append)
    built(tmp_path / "a")
    make(product(tmp_path / "b"), lambda: None, reuse=[tmp_path / "a"])
    make(product(tmp_path / "b"), lambda: None)
    assert agreed == [
        {"--out": "False", "--reuse": "None"},
        {"--out": "False", "--reuse": str(tmp_path / "a")},
        {"--out": "True", "--reuse": "None"},
    ]
