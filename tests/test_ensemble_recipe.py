"""An ensemble as a recipe: its members are run where they are not finished, then combined."""

import json
import shutil
from dataclasses import replace

import pytest
import soundfile
from machines import tiny_backbone, tone_machine

from asdjax import __main__ as command_line
from asdjax.config import EnsembleConfig
from asdjax.files import read_csv
from asdjax.recipes import RECIPES
from asdjax.recipes.recipe import Recipe
from asdjax.scoring.combine import Ensemble
from asdjax.scoring.knn import Knn
from asdjax.stages import embed, folder, stages
from asdjax.types import InputError

LOGMEL = RECIPES["frozen/logmel"].config
MEMBERS = {"test/one": LOGMEL, "test/two": replace(LOGMEL, scorer=Knn(references="domain"))}
BOTH = EnsembleConfig(tuple(MEMBERS), Ensemble((0.25, 0.75)))


@pytest.fixture
def data(tmp_path):
    tone_machine(tmp_path / "data", "fan")
    tone_machine(tmp_path / "data", "pump", seed=1)
    return tmp_path / "data"


@pytest.fixture
def recipes(monkeypatch):
    for name, config in (MEMBERS | {"test/both": BOTH}).items():
        monkeypatch.setitem(RECIPES, name, Recipe("", config, "", "", ""))


def run(tmp_path, *more):
    words = ["run", "test/both", "--data", tmp_path / "data", "--out", tmp_path / "both", *more]
    command_line.dispatch(list(map(str, words)))


def times(out):
    return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".npz", ".csv")}


def test_members_are_run_and_combined_with_the_weights_of_the_recipe(data, recipes, tmp_path):
    run(tmp_path)
    both = tmp_path / "both"
    for name, system in MEMBERS.items():
        assert folder.load(both / "members" / name).system.scorer == system.scorer
    record = json.loads((both / "ensemble.json").read_text())
    assert record["weights"] == [0.25, 0.75]
    assert [m["path"] for m in record["members"]] == [str(both / "members" / n) for n in MEMBERS]
    assert "official_score" in (both / "results.csv").read_text()


def test_only_a_member_that_changed_is_run_again(data, recipes, tmp_path, monkeypatch, capsys):
    run(tmp_path)
    folders = [tmp_path / "both" / "members" / name for name in MEMBERS]
    before, key = [times(out) for out in folders], record_key(tmp_path)
    changed = replace(MEMBERS["test/two"], scorer=Knn(standardize="machine"))
    monkeypatch.setitem(RECIPES, "test/two", Recipe("", changed, "", "", ""))
    capsys.readouterr()
    run(tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "already scored" in said[said.index("member test/one") : said.index("member test/two")]
    assert "already scored" not in said[said.index("member test/two") :]
    one, two = (times(out) for out in folders)
    score = {path for path in two if "scores" in path.parts}
    reported = "results.csv", "skipped.csv"
    assert {p for p in one if one[p] != before[0][p] and p.name not in reported} == set()
    assert all(two[path] != before[1][path] for path in score)
    assert {p for p in two if p.suffix == ".npz" and two[p] != before[1][p]} == set()
    assert record_key(tmp_path) != key


def record_key(tmp_path):
    finished = json.loads((tmp_path / "both" / "finished.json").read_text())
    return finished["scores/ensemble"]["key"]


def test_members_take_what_is_exactly_theirs_from_each_other(data, recipes, tmp_path, monkeypatch):
    """Both have the same frozen features: they are computed once."""
    asked = []
    original = embed.make_embed

    def counting(*arguments):
        compute = original(*arguments)

        def embed(clips, *rest):
            asked.append(clips)
            return compute(clips, *rest)

        return embed

    monkeypatch.setattr(embed, "make_embed", counting)
    run(tmp_path)
    assert len(asked) == 2  # machines, not machines of both members


def test_members_may_lie_elsewhere_and_weights_be_changed(data, recipes, tmp_path):
    run(tmp_path, "--runs", tmp_path / "shared", "--ensemble.weights", 3, 1)
    assert (tmp_path / "shared" / "test" / "one" / "results.csv").exists()
    assert json.loads((tmp_path / "both" / "ensemble.json").read_text())["weights"] == [0.75, 0.25]


def test_mistakes_are_told_before_anything_is_run(data, recipes, tmp_path):
    for words, message in (
        (["--members", "test/one", "test/tow"], r"single systems, got test/tow; there are frozen"),
        (["--members", "test/one", "test/both"], "single systems, got test/both"),
        (["--ensemble.weights", 1, 2, 3], "expected 2 weights, one per run, got 3"),
        (["--members", "test/one"], "two or more different members"),
        (["--members", "test/one", "aithu2024/eat-lora", "--weights", "x"], "x: neither a .safe"),
        (
            ["--members", "test/one", "aithu2024/eat-lora", "--weights", "x.safetensors"],
            "x.safetensors: no such weight file",
        ),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, *words)
    assert not (tmp_path / "both").exists()


def test_weights_of_another_backbone_are_refused(data, recipes, tmp_path):
    tiny = tiny_backbone(tmp_path / "beats.safetensors")
    with pytest.raises(
        InputError, match=r"expected eat in place of eat-base, got beats: .*beats\.s"
    ):
        run(tmp_path, "--members", "test/one", "aithu2024/eat-lora", "--weights", tiny)


def test_results_say_what_they_used(data, recipes, tmp_path):
    run(tmp_path)
    plain = (tmp_path / "both" / "results.csv").read_text()
    assert "transductive" not in plain
    assert "labels_used" not in plain
    words = ["ensemble", *(tmp_path / "both" / "members" / name for name in MEMBERS)]
    words += ["--out", tmp_path / "searched", "--search", "--transductive"]
    command_line.dispatch(list(map(str, words)))
    told = read_csv(tmp_path / "searched" / "results.csv")
    assert ["ALL", "transductive", "1.0"] in told
    assert ["ALL", "labels_used", "1.0"] in told


def test_recordings_of_other_content_are_other_recordings(data, recipes, tmp_path):
    run(tmp_path)
    one, two = (tmp_path / "both" / "members" / name for name in MEMBERS)
    copy = shutil.copytree(data, tmp_path / "copy")
    stages.run(MEMBERS["test/two"], copy, two)
    words = ["ensemble", str(one), str(two), "--out", str(tmp_path / "again")]
    command_line.dispatch(words)  # a copy is the same
    path = next((copy / "fan" / "test").iterdir())
    wave, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, wave[::-1], rate, "PCM_16")  # as long as before
    stages.run(MEMBERS["test/two"], copy, two, force=True)
    with pytest.raises(InputError, match=f"recordings of other content.*{path.name}"):
        command_line.dispatch([*words, "--force"])


def test_an_ensemble_has_no_training_of_its_own(recipes):
    with pytest.raises(InputError, match="test/both is an ensemble; `train` takes one of its"):
        command_line.dispatch(["train", "test/both", "--data", "x", "--out", "y"])


COEFFICIENTS = {  # table 3 of the report, in the order of its columns
    "aithu2024/system1": (0.0, 0.2, 0.0, 0.0, 0.4, 0.0, 0.4),
    "aithu2024/system2": (0.0, 0.5, 0.0, 0.0, 0.1, 0.0, 0.4),
    "aithu2024/system3": (0.0, 0.0, 0.0, 0.1, 0.3, 0.2, 0.4),
    "aithu2024/system4": (0.1, 0.2, 0.0, 0.1, 0.2, 0.1, 0.3),
}
SINGLES = ("beats-full", "beats-lora", "beats-pse", "eat-full", "eat-lora", "eat-pse", "dual")


@pytest.mark.parametrize(("name", "row"), COEFFICIENTS.items())
def test_the_coefficients_are_those_of_the_report(name, row):
    config = RECIPES[name].config
    weights = dict(zip(config.members, config.ensemble.weights, strict=True))
    assert [weights.get(f"aithu2024/{single}", 0.0) for single in SINGLES] == list(row)
    assert sum(row) == pytest.approx(1)
    assert not config.ensemble.transductive
