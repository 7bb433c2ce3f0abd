"""The verb `bulk`: what it finds, reads and writes, and what a later run does with it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import dataset, parquet

from app import loading
from app.bulk import places
from app.cli import main
from app.web import fetching
from app.web.problems import FetchFailed
from support.fake import CAT, DOG, FakeCaptioner, photo_folder
from support.photos import photo
from support.processes import descendants, wants_proc

HORSE = b"a horse"


@pytest.fixture
def captioner(monkeypatch):
    """Caption with the fake, which says of a file what its bytes say."""
    fake = FakeCaptioner()
    monkeypatch.setattr(loading, "load_captioner", lambda _: fake)
    return fake


@pytest.fixture
def folder(tmp_path):
    return photo_folder(tmp_path / "photos")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "captions"


def bulk(output, *arguments):
    return main(["bulk", *map(str, arguments), "--output", str(output)])


def rows(output):
    """Give all rows of an output, as any reader of folders of Parquet or JSON lines would."""
    files = sorted(output.glob("part-*.jsonl"))
    if files:
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return dataset.dataset(output, format="parquet").to_table().to_pylist()


def captions(output):
    return {row["image"]: row["caption"] for row in rows(output)}


def errors(output):
    return {row["image"]: row["error"] for row in rows(output) if row["error"]}


def files(output):
    return sorted(path.name for path in output.iterdir())


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# what is found and read


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_folder_becomes_rows_with_all_that_is_told(captioner, folder, output, form, capsys):
    (folder / "inner/c.jpg").write_bytes(b"broken")
    assert bulk(output, folder, "--format", form) == 0
    assert rows(output)[1] == {
        "image": f"{folder}/inner/a.png",
        "caption": "a cat",
        "log_prob": -1.0,
        "confidence": 0.8,
        "withheld": None,
        "warning": None,
        "error": None,
    }
    assert captions(output) == {
        f"{folder}/b.JPG": "a dog runs",
        f"{folder}/inner/a.png": "a cat",
        f"{folder}/inner/c.jpg": None,
    }
    assert errors(output) == {f"{folder}/inner/c.jpg": "damaged"}
    assert files(output) == ["_plan.jsonl", f"part-000000.{form}"]
    assert "3 photos, 1 of them with an error" in capsys.readouterr().out


def test_options_say_what_rows_have(captioner, folder, output):
    options = ("--n-best", 2, "--tags", "--min-confidence", 0.9)
    assert bulk(output, f"{folder}/*.JPG", *options) == 0
    (row,) = rows(output)
    assert (row["caption"], row["withheld"]) == (None, "low_confidence")
    assert [each["caption"] for each in row["candidates"]] == ["a dog runs", "a dog runs 1"]
    assert row["tags"] == [{"label": "dog", "probability": 0.75}]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", {"b.JPG", "notes.txt", "inner/a.png"}),  # and what is in folders that match
        ("**/*.png", {"inner/a.png"}),
        ("**", {"b.JPG", "notes.txt", "inner/a.png"}),
        ("in*/a.*", {"inner/a.png"}),
        ("*/a.png", {"inner/a.png"}),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.usefixtures("captioner")
def test_patterns_lead_to_files_each_once(folder, output, scheme, pattern, found):
    (folder / ".hidden").write_bytes(DOG)
    assert bulk(output, f"{scheme}{folder}/{pattern}") == 0
    assert len(rows(output)) == len(found)
    assert {*captions(output)} == {f"{scheme}{folder}/{name}" for name in found}


@pytest.mark.parametrize(("name", "mode"), [("0.tar", "w"), ("0.tar.gz", "w:gz")])
def test_a_shard_of_webdataset_has_a_row_for_each_image(captioner, tmp_path, output, name, mode):
    members = {"1.jpg": DOG, "1.json": b"{}", "2.png": b"broken", "3.cls": b"3", "4.webp": CAT}
    shard = tar(tmp_path / name, members, mode)
    assert bulk(output, shard) == 0
    said = captions(output)
    assert said == {
        f"{shard}/1.jpg": "a dog runs",
        f"{shard}/2.png": None,
        f"{shard}/4.webp": "a cat",
    }


def test_a_damaged_shard_keeps_its_rows_and_tells_where_it_ends(captioner, tmp_path, output):
    shard = tar(tmp_path / "0.tar", {"1.jpg": DOG, "2.jpg": CAT, "3.jpg": HORSE})
    shard.write_bytes(shard.read_bytes()[:2048])  # two members, then nothing
    assert bulk(output, shard) == 0
    assert captions(output) == {
        f"{shard}/1.jpg": "a dog runs",
        f"{shard}/2.jpg": "a cat",
        f"{shard}": None,
    }
    assert "the file ends here" in errors(output)[str(shard)]


def test_a_shard_without_images_is_done_as_well(captioner, tmp_path, output):
    empty = tar(tmp_path / "0.tar", {"1.txt": b"no photo"})
    full = tar(tmp_path / "1.tar", {"1.jpg": DOG})
    assert bulk(output, empty, full, empty) == 0
    assert captions(output) == {f"{full}/1.jpg": "a dog runs"}
    assert len(files(output)) == 4


def test_a_large_photo_is_refused_in_its_row(captioner, tmp_path, output, monkeypatch):
    monkeypatch.setenv("CAPTION_MAX_UPLOAD_BYTES", "100")
    shard = tar(tmp_path / "0.tar", {"1.jpg": bytes(101), "2.jpg": DOG})
    (tmp_path / "3.jpg").write_bytes(bytes(101))
    table = tmp_path / "4.parquet"
    parquet.write_table(pa.table({"image": [bytes(101)]}), table)
    assert bulk(output, shard, tmp_path / "3.jpg", table) == 0
    assert [*errors(output)] == [f"{shard}/1.jpg", f"{table}#0", f"{tmp_path}/3.jpg"]
    assert {*errors(output).values()} == {"more than the 100 bytes of CAPTION_MAX_UPLOAD_BYTES"}


def test_parquet_holds_bytes_structs_paths_or_addresses(captioner, folder, tmp_path, output):
    structs = [{"bytes": DOG, "path": None}, {"bytes": None, "path": "photos/inner/a.png"}, None]
    parquet.write_table(pa.table({"image": structs}), tmp_path / "0.parquet")
    names = ["photos/b.JPG", f"{folder}/inner/a.png", f"file://{folder}/b.JPG", "abc://d/e.jpg"]
    parquet.write_table(pa.table({"n": range(4), "path": names}), tmp_path / "1.parquet")
    assert bulk(output, f"{tmp_path}/*.parquet") == 0
    said = [row["caption"] for row in rows(output)]
    assert said == ["a dog runs", "a cat", None, "a dog runs", "a cat", "a dog runs", None]
    assert [*captions(output)][:4] == [
        *(f"{tmp_path}/0.parquet#{n}" for n in range(3)),
        f"{tmp_path}/1.parquet#0",
    ]
    assert "neither bytes nor an address" in errors(output)[f"{tmp_path}/0.parquet#2"]
    assert "file://, s3://, gs://" in errors(output)[f"{tmp_path}/1.parquet#3"]


def test_parquet_is_divided_at_its_row_groups(captioner, tmp_path, output):
    table = tmp_path / "0.parquet"
    said = [f"photo {n}" for n in range(25)]
    parquet.write_table(
        pa.table({"a": range(25), "pixels": [each.encode() for each in said]}),
        table,
        row_group_size=5,
    )
    assert bulk(output, table, "--rows-per-file", 8, "--column", "pixels") == 0
    assert captions(output) == {f"{table}#{n}": said[n] for n in range(25)}
    sizes = [parquet.read_metadata(file).num_rows for file in sorted(output.glob("*.parquet"))]
    assert sizes == [10, 10, 5]


def test_web_addresses_are_fetched_from_the_hosts_of_the_settings(
    captioner, tmp_path, output, monkeypatch
):
    def fetch(url, settings):
        if not url.startswith(f"https://{settings.fetch_urls[0]}/"):
            raise FetchFailed("this host is not allowed")
        return DOG

    monkeypatch.setattr(fetching, "fetch", fetch)
    monkeypatch.setenv("CAPTION_FETCH_URLS", "photos.example")
    urls = ["https://photos.example/1.jpg", "http://169.254.169.254/secret.jpg"]
    parquet.write_table(pa.table({"url": urls}), tmp_path / "0.parquet")
    assert bulk(output, tmp_path / "0.parquet") == 0
    assert [row["caption"] for row in rows(output)] == ["a dog runs", None]
    assert [*errors(output).values()] == ["this host is not allowed"]


def test_without_named_hosts_no_address_is_fetched(captioner, tmp_path, output):
    parquet.write_table(pa.table({"url": ["http://127.0.0.1/1.jpg"]}), tmp_path / "0.parquet")
    assert bulk(output, tmp_path / "0.parquet") == 0
    assert "CAPTION_FETCH_URLS" in next(iter(errors(output).values()))


def test_another_file_system_is_read_and_written_as_this_one(captioner, folder, output):
    tar(folder / "0.tar", {"1.jpg": HORSE})
    parquet.write_table(pa.table({"image": [b"a bird"]}), folder / "1.parquet")
    assert bulk(f"file://{output}", f"file://{folder}", "--rows-per-file", 1) == 0
    assert captions(output) == {
        f"file://{folder}/0.tar/1.jpg": "a horse",
        f"file://{folder}/1.parquet#0": "a bird",
        f"file://{folder}/b.JPG": "a dog runs",
        f"file://{folder}/inner/a.png": "a cat",
    }
    assert len(files(output)) == 5
    assert bulk(f"file://{output}", f"file://{folder}", "--rows-per-file", 1) == 0
    assert sum(map(len, captioner.batches)) == 4


def test_names_of_any_bytes_are_told(captioner, tmp_path, output):
    place = tmp_path / "odd"
    place.mkdir()
    (place / os.fsdecode(b"\xff #1%.jpg")).write_bytes(DOG)
    assert bulk(output, place) == 0
    assert captions(output) == {f"{place}/\\xff #1%.jpg": "a dog runs"}


def test_photos_that_are_slow_to_read_are_all_read(captioner, folder, output, monkeypatch):
    """The last photos are still being read when the network asks for more."""
    opened = places._Here.open

    def slowly(self, address):
        time.sleep(0.1)
        return opened(self, address)

    for n in range(30):
        (folder / f"{n}.jpg").write_bytes(DOG)
    monkeypatch.setattr(places._Here, "open", slowly)
    assert bulk(output, folder) == 0
    assert len(captions(output)) == 32
    assert errors(output) == {}


# what is refused


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere", "expected photos, .tar or .parquet files there, and found none"),
        ("none-*.jpg", "found none"),
        ("https://photos.example/1.jpg", "expected a path, or an address that begins with file://"),
        ("table.parquet", "has the columns a, b: name the one with the images"),
        ("false.parquet", "is no Parquet file"),
    ],
)
def test_what_leads_nowhere_is_told_before_the_network_is_loaded(
    source, told, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "captions"
    monkeypatch.chdir(tmp_path)
    parquet.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "table.parquet")
    (tmp_path / "false.parquet").write_bytes(b"no table")
    monkeypatch.setattr(loading, "load_captioner", lambda _: pytest.fail("it was loaded"))
    assert bulk(output, source) == 1
    assert told in capsys.readouterr().err
    assert not output.exists() or files(output) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "caption-service[tables]"),
        (("s3://photos/", "--format", "jsonl"), "caption-service[tables]"),
        (("--ray", "auto"), "caption-service[ray]"),
    ],
)
def test_a_library_that_is_missing_is_named(arguments, told, folder, monkeypatch, capsys):
    monkeypatch.setattr("app.bulk.places.find_spec", lambda _: None)
    monkeypatch.setattr("app.bulk.on_ray.find_spec", lambda _: None)
    assert bulk(folder / "captions", folder, *arguments) == 1
    assert told in capsys.readouterr().err


def test_an_output_belongs_to_one_run(captioner, folder, output, capsys):
    assert bulk(output, folder) == 0
    assert bulk(output, folder, "--style", "alt") == 1
    assert "was made with style sentence, not alt" in capsys.readouterr().err
    assert bulk(output, folder / "inner") == 1
    assert "choose another --output" in capsys.readouterr().err


# what a later run does


def test_a_later_run_does_the_rest_of_the_first_plan(captioner, folder, output):
    for n in range(10):
        (folder / f"inner/{n}.jpg").write_bytes(f"photo {n}".encode())
    assert bulk(output, folder, "--rows-per-file", 5) == 0
    said = captions(output)
    (output / "part-000001.parquet").unlink()
    (output / ".draft-0-part-000001.parquet").write_bytes(b"of a run that was ended")
    (folder / "a.jpg").write_bytes(b"came later")
    captioner.batches.clear()
    assert bulk(output, folder, "--rows-per-file", 5) == 0
    assert sum(map(len, captioner.batches)) == 5
    assert captions(output) == said
    assert len(files(output)) == 4


def test_a_file_that_cannot_be_read_now_is_left_to_a_later_run(captioner, tmp_path, output, capsys):
    first = tar(tmp_path / "0.tar", {"1.jpg": DOG})
    second = tar(tmp_path / "1.tar", {"1.jpg": CAT})
    assert bulk(output, first, second) == 0
    for name in ("part-000000.parquet", "part-000001.parquet"):
        (output / name).unlink()
    away = first.rename(tmp_path / "away")
    assert bulk(output, first, second) == 1
    assert f"{first}: No such file or directory: left to a later run" in capsys.readouterr().err
    assert captions(output) == {f"{second}/1.jpg": "a cat"}
    away.rename(first)
    assert bulk(output, first, second) == 0
    assert len(rows(output)) == 2


def test_a_run_that_fails_leaves_no_draft(captioner, folder, output):
    captioner.device_errors = [OSError(5, "the device is gone")]
    assert bulk(output, folder) == 1
    assert files(output) == ["_plan.jsonl"]


PHOTOS = 300


def started(checkpoint, source, output, *arguments):
    options = ["--rows-per-file", "10", *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "bulk", source, "--output", output, *options],
        env={**os.environ, "CAPTION_CHECKPOINT": str(checkpoint), "CAPTION_DEVICE": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_some_are_done(process, output, count):
    ends_s = time.monotonic() + 100
    while len([*output.glob("part-*")]) < count:
        assert time.monotonic() < ends_s
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Some hundred photos: files, tar files and Parquet, one of them broken."""
    place = tmp_path_factory.mktemp("many")
    drawn = [photo(n, width=32, height=24) for n in range(PHOTOS)]
    drawn[7] = drawn[7][:60]
    for n in range(100):
        (place / f"{n}.png").write_bytes(drawn[n])
    for n in range(100, 200, 20):
        tar(place / f"{n}.tar", {f"{m}.png": drawn[m] for m in range(n, n + 20)})
    table = pa.table({"image": drawn[200:]})
    parquet.write_table(table, place / "200.parquet", row_group_size=7)
    return place


@pytest.mark.timeout(300)
def test_a_kill_costs_no_row_and_doubles_none(checkpoint, many, tmp_path):
    output = tmp_path / "captions"
    kills = 0
    for done in (3, 9):
        process = started(checkpoint, many, output)
        until_some_are_done(process, output, done)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += len([*output.glob("part-*")]) < 25
    assert kills == 2  # there was something left each time
    before = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    told, complaints = started(checkpoint, many, output).communicate()
    assert complaints == ""
    assert "25 of 25 files" in told or "of 25 files" not in told
    assert {path: path.stat().st_mtime_ns for path in before} == before
    seen = Counter(row["image"] for row in rows(output))
    assert len(seen) == PHOTOS
    assert {*seen.values()} == {1}
    assert [*errors(output)] == [f"{many}/7.png"]
    assert all(name == "_plan.jsonl" or name.startswith("part-") for name in files(output))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
@wants_proc
def test_on_ray_a_worker_that_is_killed_costs_no_row_and_doubles_none(checkpoint, many, tmp_path):
    output = tmp_path / "captions"
    process = started(checkpoint, many, output, "--ray", "local", "--workers", "1")
    until_some_are_done(process, output, 3)
    workers = [pid for pid in descendants(process.pid) if "MapWorker" in name_of(pid)]
    os.kill(workers[0], signal.SIGKILL)
    told, complaints = process.communicate()
    assert process.returncode == 0, complaints
    assert f"{PHOTOS} photos, 1 of them with an error" in told
    seen = Counter(row["image"] for row in rows(output))
    assert len(seen) == PHOTOS
    assert {*seen.values()} == {1}


def name_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
