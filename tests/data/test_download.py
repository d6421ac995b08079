"""Downloads against a server on loopback: cut connections, missing ranges, wrong sums, no room."""

import contextlib
import hashlib
import http.server
import io
import json
import re
import shutil
import threading
import zipfile
from collections import namedtuple

import numpy as np
import pytest

from asdjax.data import archives
from asdjax.data import download as module
from asdjax.data.download import download, fetch, unpack
from asdjax.types import InputError

BODY = np.random.default_rng(0).bytes(700_000)  # several read blocks
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
Usage = namedtuple("Usage", "total used free")


class FakeServer:
    """What the server holds, how it misbehaves, and the requests it saw."""

    def __init__(self, url):
        self.url = url
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.ranges = True
        self.cuts: list[int] = []  # bytes after which each of the next answers breaks off
        self.errors: list[int] = []  # status codes of the next answers

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        body = self.files.get(handler.path)
        if self.errors or body is None:
            return handler.send_error(self.errors.pop(0) if self.errors else 404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            return handler.end_headers()
        handler.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start:][: self.cuts.pop(0) if self.cuts else None])


@pytest.fixture
def server(monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(ConnectionError):  # the client may leave early
                fake.answer(self)

        def log_message(self, *_):
            pass

    monkeypatch.setattr("asdjax.data.download.BACKOFF_S", (0, 0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        fake = FakeServer(f"http://127.0.0.1:{httpd.server_port}")
        fake.files["/a.bin"] = BODY
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        httpd.shutdown()
        thread.join()


def test_interrupted_transfer_resumes_within_a_call(server, tmp_path):
    server.cuts = [300_001]
    seen = []
    path = download(
        f"{server.url}/a.bin",
        tmp_path / "new" / "a.bin",
        checksum=MD5,
        progress=lambda received, total: seen.append((received, total)),
    )
    assert path.read_bytes() == BODY
    assert server.requests == [("/a.bin", None), ("/a.bin", "bytes=300001-")]
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))


def test_control_c_leaves_the_part_and_the_next_call_resumes(server, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = tmp_path / "a.bin"
    with pytest.raises(KeyboardInterrupt):
        download(f"{server.url}/a.bin", path, checksum=MD5, progress=interrupt)
    kept = (tmp_path / "a.bin.part").read_bytes()
    assert 0 < len(kept) < len(BODY)
    assert not path.exists()
    assert download(f"{server.url}/a.bin", path, checksum=MD5).read_bytes() == BODY
    assert server.requests[1] == ("/a.bin", f"bytes={len(kept)}-")


def test_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    path = download(f"{server.url}/a.bin", tmp_path / "a.bin", checksum=MD5)
    assert server.requests == [("/a.bin", "bytes=1000-")]
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_complete_part_needs_no_more_bytes(server, tmp_path, size):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    path = download(f"{server.url}/a.bin", tmp_path / "a.bin", checksum=MD5, size=size)
    assert path.read_bytes() == BODY
    assert len(server.requests) == (1 if size is None else 0)  # 416, or known without asking


def test_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY + b"tail of an older file")
    path = download(f"{server.url}/a.bin", tmp_path / "a.bin", checksum=MD5)
    assert path.read_bytes() == BODY


def test_wrong_checksum_is_refused_and_removed(server, tmp_path):
    wrong = "sha256:" + "0" * 64
    with pytest.raises(InputError, match=wrong) as refused:
        download(f"{server.url}/a.bin", tmp_path / "a.bin", checksum=wrong)
    assert hashlib.sha256(BODY).hexdigest() in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_matching_file_is_kept_and_a_differing_one_replaced(server, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(BODY[:-1])
    download(f"{server.url}/a.bin", path, checksum=MD5)
    assert path.read_bytes() == BODY
    download(f"{server.url}/a.bin", path, checksum=MD5)
    assert len(server.requests) == 1


def test_passing_server_errors_are_retried(server, tmp_path):
    server.errors = [503, 429]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == BODY
    assert len(server.requests) == 3


def test_lasting_errors_name_the_address(server, tmp_path):
    with pytest.raises(InputError, match="404"):
        download(f"{server.url}/nowhere", tmp_path / "a.bin")
    assert len(server.requests) == 1  # asking again cannot help
    server.errors = [500] * 9
    with pytest.raises(InputError, match=r"/a\.bin: .*500"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 1 + 3  # here: the first attempt and one per wait
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_always_cuts_is_given_up(server, tmp_path):
    """Without ranges each attempt starts at zero, so reaching the same byte is no progress."""
    server.ranges = False
    server.cuts = [1000] * 9
    with pytest.raises(InputError, match="continues after the 1,000 bytes"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 3  # the first attempt and one per wait


def test_announced_size_must_be_the_known_one(server, tmp_path):
    with pytest.raises(InputError, match=r"expected 5 bytes.*announces 700,000"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", size=5)
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_told_before_any_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, len(BODY) - 1))
    with pytest.raises(InputError, match="not enough room") as refused:
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert str(tmp_path) in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_on_the_way(server, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"disk of .*a\.bin\.part is full"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", progress=full)
    assert len(server.requests) == 1  # not taken for a network failure


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def serve(server, record: int, contents: dict[str, bytes]) -> None:
    """Offer archives as Zenodo does: the files and the record's listing."""
    listing = []
    for name, body in contents.items():
        server.files[f"/records/{record}/files/{name}"] = body
        checksum = "md5:" + hashlib.md5(body).hexdigest()
        listing.append({"key": name, "size": len(body), "checksum": checksum})
    server.files[f"/api/records/{record}"] = json.dumps({"files": listing}).encode()


def tree(folder) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".unpacked-")
    }


@pytest.fixture
def zenodo(server):
    """Both evaluation records of 2024 for two machines, one of them with a corrected archive."""
    machines = ("Scanner", "3DPrinter")
    train = {
        m: {f"{m}/train/a.wav": b"train" * 9, f"{m}/attributes_00.csv": b"x"} for m in machines
    }
    test = {m: {f"{m}/test/section_00_0000.wav": m.encode()} for m in machines}
    serve(
        server,
        11259435,
        {
            "eval_data_Scanner_train.zip": zipped(train["Scanner"]),
            "eval_data_3DPrinter_train.zip": b"superseded",
            "eval_data_3DPrinter_train_r2.zip": zipped(train["3DPrinter"]),
        },
    )
    serve(server, 11363076, {f"eval_data_{m}_test.zip": zipped(test[m]) for m in machines})
    server.expected = {
        name: body for m in machines for part in (train, test) for name, body in part[m].items()
    }
    return server


def test_fetch_unpacks_train_and_test_into_one_folder_per_machine(zenodo, tmp_path):
    machines = ["3DPrinter", "Scanner"]
    raw = fetch(2024, "eval", tmp_path, machines, mirror=zenodo.url + "/")
    assert raw == tmp_path / "dcase2024t2" / "eval_data" / "raw"
    assert tree(raw) == zenodo.expected
    assert [p.name for p in raw.parent.iterdir()] == ["raw"]  # no zip, no temporary folder
    assert len(zenodo.requests) == 2 + 4  # each record's listing once, four archives
    assert fetch(2024, "eval", tmp_path, machines, mirror=zenodo.url) == raw
    assert len(zenodo.requests) == 6


def test_both_parts_of_an_edition_lie_beside_each_other(zenodo, tmp_path, monkeypatch):
    fan = archives.Archive("fan", 1, "dev_fan.zip", "")
    monkeypatch.setitem(archives.ARCHIVES, (2024, "dev"), [fan])
    serve(zenodo, fan.record, {fan.name: zipped({"fan/train/section_00_0000.wav": b"fan"})})
    asked = "fan", "Scanner", "3DPrinter"
    folder = fetch(2024, "all", tmp_path, asked, mirror=zenodo.url)
    assert folder == tmp_path / "dcase2024t2"
    assert tree(folder / "dev_data" / "raw") == {"fan/train/section_00_0000.wav": b"fan"}
    assert tree(folder / "eval_data" / "raw") == zenodo.expected
    with pytest.raises(InputError, match=r"no machine type Fan; .*3DPrinter.*fan"):
        fetch(2024, "all", tmp_path, ["Fan"], mirror=zenodo.url)


def test_fetch_gets_a_removed_machine_again_and_only_it(zenodo, tmp_path):
    machines = ["3DPrinter", "Scanner"]
    raw = fetch(2024, "eval", tmp_path, machines, mirror=zenodo.url)
    shutil.rmtree(raw / "Scanner")
    zenodo.requests.clear()
    fetch(2024, "eval", tmp_path, machines, mirror=zenodo.url)
    assert tree(raw) == zenodo.expected
    assert sorted(path for path, _ in zenodo.requests if path.endswith(".zip")) == [
        "/records/11259435/files/eval_data_Scanner_train.zip",
        "/records/11363076/files/eval_data_Scanner_test.zip",
    ]


@pytest.mark.parametrize("stage", ["extractall", "rename"])
def test_interrupted_unpacking_leaves_no_part_of_the_archive(zenodo, tmp_path, monkeypatch, stage):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stage == "rename":
            patched.setattr(module, "_merge", interrupt)
        else:  # after the first member
            patched.setattr(
                zipfile.ZipFile, "extractall", lambda z, to: [z.extract(z.namelist()[0], to), 1 / 0]
            )
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            fetch(2024, "eval", tmp_path, ["Scanner"], mirror=zenodo.url)
    raw = tmp_path / "dcase2024t2" / "eval_data" / "raw"
    assert tree(raw) == {}
    assert [p.name for p in raw.parent.glob(".unpacking*")] == []
    zenodo.requests.clear()
    fetch(2024, "eval", tmp_path, ["Scanner"], mirror=zenodo.url)
    assert len(tree(raw)) == 3
    downloaded = [path.rpartition("/")[2] for path, _ in zenodo.requests if "files" in path]
    assert downloaded == ["eval_data_Scanner_test.zip"]  # the verified train zip was still there


def test_fetch_tells_what_there_is(tmp_path):
    with pytest.raises(InputError, match="2020 dev"):
        fetch(2019, "dev", tmp_path)
    with pytest.raises(InputError, match=r"no machine type Fan, pump; .*bearing, fan"):
        fetch(2024, "dev", tmp_path, ["Fan", "pump", "valve"])
    assert list(tmp_path.iterdir()) == []


def test_fetch_needs_room_for_archives_and_recordings(zenodo, tmp_path, monkeypatch):
    total = sum(len(b) for p, b in zenodo.files.items() if p.endswith("Scanner_train.zip"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, total))
    with pytest.raises(InputError, match="not enough room"):
        fetch(2024, "eval", tmp_path, ["Scanner"], mirror=zenodo.url)
    assert not any(path.endswith(".zip") for path, _ in zenodo.requests)


def test_fetch_refuses_a_listing_that_differs_from_the_recorded_sum(server, tmp_path):
    serve(server, 7882613, {"dev_fan.zip": zipped({"fan/train/a.wav": b"other"})})
    with pytest.raises(InputError) as refused:
        fetch(2023, "dev", tmp_path, ["fan", "valve"], mirror=server.url)
    assert "dev_fan.zip: expected md5:9348591e96fb0ad499a1e33b082562fc" in str(refused.value)
    assert "dev_valve.zip" in str(refused.value)  # missing in the listing; both told at once
    assert not any(path.endswith(".zip") for path, _ in server.requests)


def test_fetch_refuses_a_server_that_is_no_zenodo(server, tmp_path):
    server.files["/api/records/10902294"] = b"<html>welcome to the hotel network</html>"
    with pytest.raises(InputError, match="expected a Zenodo record"):
        fetch(2024, "dev", tmp_path, ["fan"], mirror=server.url)


@pytest.mark.parametrize(
    "name",
    ["../evil.wav", "fan/../../evil.wav", "/evil.wav", "fan\\..\\..\\evil.wav", "C:evil.wav"],
)
def test_zip_that_leaves_its_folder_is_refused(tmp_path, name):
    file = tmp_path / "in" / "dev_fan.zip"
    file.parent.mkdir()
    file.write_bytes(zipped({"fan/a.wav": b"a", name: b"evil"}))
    (tmp_path / "data" / "raw").mkdir(parents=True)
    with pytest.raises(InputError, match="unsafe paths"):
        unpack(file, tmp_path / "data" / "raw", "fan")
    assert tree(tmp_path) == {"in/dev_fan.zip": file.read_bytes()}


def test_zip_without_the_machine_and_broken_zip_are_refused(tmp_path):
    file = tmp_path / "dev_fan.zip"
    (tmp_path / "raw").mkdir()
    file.write_bytes(zipped({"valve/a.wav": b"a"}))
    with pytest.raises(InputError, match="a folder fan"):
        unpack(file, tmp_path / "raw", "fan")
    file.write_bytes(zipped({"fan/a.wav": b"a" * 99})[:-30])
    with pytest.raises(InputError, match="not a whole zip"):
        unpack(file, tmp_path / "raw", "fan")
    assert tree(tmp_path / "raw") == {}


def test_archive_table_is_consistent():
    """No archive is listed twice; every machine has one for development and two for evaluation."""
    named = [(a.record, a.name) for table in archives.ARCHIVES.values() for a in table]
    assert len(named) == len(set(named)) == 146
    sums = [a.md5 for table in archives.ARCHIVES.values() for a in table if a.md5]
    assert len(sums) == len(set(sums)) == 18 + 21 + 17  # 2020, 2023, 2026
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in sums)
    assert {year for year, _ in archives.ARCHIVES} == set(archives.EVALUATORS)
    for year, part in archives.ARCHIVES:
        machines = [a.machine for a in archives.ARCHIVES[year, part]]
        assert {machines.count(m) for m in machines} == {1 if part == "dev" else 2}
