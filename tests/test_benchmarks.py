"""What of the benchmarks can be tested without a server to compare."""

import argparse
import ast
import asyncio
import importlib.metadata
import io
import json
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage
import torch
import uvloop
from PIL import Image

from app.captioner import checkpoint
from app.captioner.captions import Caption
from app.captioner.model import torch_checkpoint
from app.captioner.pipeline import Captioner
from app.captioner.search import SearchOptions
from app.captioner.vocabulary import BOS, PAD, UNK
from app.settings import PROJECT_ROOT, Settings
from support.tiny import photo, save_tiny_checkpoint, tiny_unpublished

BENCHMARKS = PROJECT_ROOT / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import instant  # noqa: E402

import ablation  # noqa: E402 - programs, not a package
import alternatives  # noqa: E402
import before_after  # noqa: E402
import costliest  # noqa: E402
import fronts  # noqa: E402
import gpu  # noqa: E402
import growth  # noqa: E402
import limit  # noqa: E402
import load  # noqa: E402
import overhead  # noqa: E402
import overload  # noqa: E402
import peers  # noqa: E402
import plain  # noqa: E402
import result  # noqa: E402
import servers  # noqa: E402
import shipped  # noqa: E402
import side_by_side  # noqa: E402
import startup  # noqa: E402
import swap  # noqa: E402

SHIPPED = PROJECT_ROOT / Settings().checkpoint
PHOTOS = Path(skimage.__file__).parent / "data"
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
MORE_PHOTOS = PROJECT_ROOT.parent / "shared" / "photos"


def said_by_both(directory, photos):
    captioner = Captioner.load(directory, precision="float32")
    other = plain.PlainCaptioner.load(directory)
    images = [captioner.read(data, max_pixels=40_000_000) for data in photos]
    ours = [best.text for best, *_ in captioner.caption(images).captions]
    return ours, other.caption([other.read(data) for data in photos])


def large_jpeg(path, *, turned):
    file, image = io.BytesIO(), Image.open(path).convert("RGB").resize((2000, 1500))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_the_plain_captioner_says_what_ours_says():
    photos = [(PHOTOS / name).read_bytes() for name in NAMES]
    photos += [large_jpeg(PHOTOS / "astronaut.png", turned=turned) for turned in (False, True)]
    photos += [path.read_bytes() for path in sorted(MORE_PHOTOS.glob("*.jpg"))]
    ours, theirs = said_by_both(SHIPPED, photos)
    assert theirs == ours
    assert len(set(ours)) > 3


@pytest.mark.parametrize(
    "options",
    [
        {"beam_width": 3, "min_words": 5, "max_words": 8, "length_penalty": 0.7},
        {"beam_width": 5, "min_words": 0, "max_words": 3, "length_penalty": 0.0},
        {"beam_width": 1, "min_words": 8, "max_words": 8, "length_penalty": 1.0},
        {"beam_width": 3, "min_words": 0, "max_words": 8, "length_penalty": 3.0},
        {"beam_width": 3, "min_words": 7, "max_words": 8, "no_repeat_ngram_size": 2},
        {"beam_width": 3, "min_words": 7, "max_words": 8, "no_repeat_ngram_size": 3},
    ],
)
def test_the_plain_captioner_searches_as_ours_does(tmp_path, options):
    unpublished = tiny_unpublished()
    with torch.no_grad():
        unpublished.network.decoder.words.bias[[PAD, BOS, UNK]] += 9  # what is never said
    manifest = unpublished.manifest.model_copy(update={"search": SearchOptions(**options)})
    torch_checkpoint.save(tmp_path / "tiny", unpublished._replace(manifest=manifest))
    ours, theirs = said_by_both(tmp_path / "tiny", [photo(n) for n in range(4)])
    assert theirs == ours
    assert all(options["min_words"] <= len(caption.split()) for caption in ours)


def test_the_plain_captioner_has_the_global_feature(tmp_path):
    torch_checkpoint.save(tmp_path / "tiny", tiny_unpublished(global_feature=True))
    ours, theirs = said_by_both(tmp_path / "tiny", [photo(n) for n in range(4)])
    assert theirs == ours


def test_the_plain_captioner_has_efficientnet_lite_and_tied_words(tmp_path):
    network = {"encoder": "efficientnet_lite1", "tied_words": True, "classes": True}
    torch_checkpoint.save(tmp_path / "tiny", tiny_unpublished(**network))
    ours, theirs = said_by_both(tmp_path / "tiny", [photo(n) for n in range(4)])
    assert theirs == ours


def test_the_plain_captioner_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="attention"):
        plain.PlainCaptioner.load(save_tiny_checkpoint(tmp_path, "inject"))


def test_the_plain_captioner_is_plain():
    tree = ast.parse((BENCHMARKS / "plain.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert "app" not in ast.unparse(ast.Module(imports, [])).split()
    assert not any("from app" in ast.unparse(node) for node in imports)


def test_the_programs_without_app_take_the_checkpoint_that_the_service_takes():
    assert PROJECT_ROOT / Settings.model_fields["checkpoint"].default == shipped.SHIPPED
    assert plain.SHIPPED == alternatives.SHIPPED == startup.SHIPPED == shipped.SHIPPED


def test_the_newest_version_has_the_highest_number(tmp_path):
    for version in ("2", "10", "9-draft"):
        (tmp_path / shipped.NAME / version).mkdir(parents=True)
    assert shipped.newest(tmp_path).name == "10"


def test_a_store_without_the_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=shipped.NAME):
        shipped.newest(tmp_path)


WRK = """Running 10s test @ http://127.0.0.1:18400/predict
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   160.02ms   21.10ms 250.13ms   80.12%
    Req/Sec    25.01      6.02    40.00     70.00%
  250 requests in 10.01s, 60.00KB read
  Non-2xx or 3xx responses: 3
Requests/sec:     24.97
Transfer/sec:      5.99KB

{"answers": 250, "seconds": 10.010000, "refused": 3, "broken": 2, "p50_ms": 160.1, "p99_ms": 249.9}
"""


def test_what_wrk_prints_is_read():
    seen = load.read_wrk(WRK)
    assert seen == load.Outcome(answers=247, seconds=10.01, errors=5, p50_ms=160.1, p99_ms=249.9)
    assert seen.per_s == pytest.approx(24.675, abs=1e-3)


def test_wrk_that_failed_is_told():
    with pytest.raises(ValueError, match="unable to connect"):
        load.read_wrk("unable to connect to 127.0.0.1:18400 Connection refused")


@pytest.mark.parametrize(
    "answer",
    [
        {"caption": "a dog"},
        {"results": [{"caption": "a dog", "candidates": [{"caption": "a dog"}]}]},
        ["a dog"],
        "a dog",
    ],
)
def test_a_caption_is_found_in_every_answer(answer):
    assert load.caption_of(json.dumps(answer).encode()) == "a dog"


def test_an_answer_without_a_caption_has_none():
    assert load.caption_of(b'{"title": "Overloaded"}') == ""


def test_photos_have_the_long_side_that_was_asked_for(tmp_path):
    (tmp_path / "tall.png").write_bytes(photo(width=30, height=90))
    (tall,) = load.photos([tmp_path / "tall.png"], 300)
    drawn = load.photos([], 320)
    assert Image.open(io.BytesIO(tall)).size == (100, 300)
    assert [Image.open(io.BytesIO(data)).size for data in drawn] == [(320, 240)] * 2
    assert drawn[0] != drawn[1]
    assert drawn == load.photos([], 320)


def test_arrivals_repeat_with_their_seed():
    poisson = load.arrivals(50, 20, seed=1, even=False)
    assert poisson == load.arrivals(50, 20, seed=1, even=False)
    assert poisson != load.arrivals(50, 20, seed=2, even=False)
    assert poisson == sorted(poisson)
    assert max(poisson) < 20
    assert 900 < len(poisson) < 1100
    gaps = {round(b - a, 9) for a, b in pairwise(load.arrivals(50, 20, seed=1, even=True))}
    assert gaps == {0.02}


def test_percentiles_are_values_that_were_seen():
    values = [float(n) for n in range(100, 0, -1)]
    assert [load.percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert load.percentile(values[:1], 99) == 100
    assert str(load.percentile([], 50)) == "nan"
    assert load.without_nan({"p50": [load.percentile([], 50), 1]}) == {"p50": [None, 1]}


class Picky(BaseHTTPRequestHandler):
    """Captions photos that begin with an a, refuses the others, hangs up on an empty one."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not body:
            self.close_connection = True
            return
        self.send_response(200 if body.startswith(b"a") else 503)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b'9\r\n{"caption\r\n8\r\n": "dog"\r\n1\r\n}\r\n0\r\n\r\n')

    def log_message(self, *args):
        pass


@pytest.fixture
def picky():
    server = ThreadingHTTPServer((load.HOST, 0), Picky)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def posts(*bodies):
    return [load.Post("/predict", "image/jpeg", body) for body in bodies]


def test_one_request_is_answered(picky):
    (asking,) = posts(b"a")
    status, body = load.ask(picky, asking)
    assert (status, load.caption_of(body)) == (200, "dog")


def test_nobody_who_listens_is_an_os_error():
    with pytest.raises(OSError, match=r"refused|Connect"):
        load.ask(1, posts(b"a")[0])


def test_a_closed_loop_counts_answers_and_errors(picky, monkeypatch):
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    seen = load.closed_loop(picky, posts(b"a", b"b"), concurrency=2, seconds=0.3)
    assert load.generator() == "python"
    assert seen.answers > 0
    assert seen.errors > 0
    assert 0 < seen.p50_ms <= seen.p99_ms


def test_an_open_loop_tells_what_became_of_each_arrival(picky):
    moments = [0.0, 0.02, 0.04, 0.06]
    answers = load.open_loop(picky, posts(b"a", b"b", b""), moments, patience_s=5)
    assert [answer.status for answer in answers] == [200, 503, 0, 200]
    assert all(0 < answer.taken_s < 5 for answer in answers)


def test_a_form_holds_the_photo_as_it_is():
    raw = load.post(b"\xff\xd8photo", "/p", "raw")
    form = load.post(b"\xff\xd8photo", "/p", "multipart")
    assert raw[:3] == ("/p", "image/jpeg", b"\xff\xd8photo")
    boundary = form.content_type.partition("boundary=")[2].encode()
    assert form.body.startswith(b"--" + boundary + b"\r\n")
    assert form.body.endswith(b"\r\n\r\n\xff\xd8photo\r\n--" + boundary + b"--\r\n")


def test_an_overload_counts_what_became_of_each_arrival():
    statuses = [(200, 0.1), (200, 2.0), (200, 2.1), (429, 0), (503, 0), (504, 2), (500, 0), (0, 9)]
    answers = [load.Answer(status, taken_s) for status, taken_s in statuses]
    row = overload.summary(answers, seconds=4, deadline_s=2, capacity_per_s=0.25)
    assert row == {
        "offered_per_s": 2,
        "good_per_s": 0.5,
        "good_part": 2,
        "p99_s": 2.1,
        "late": 1,
        "refused": 2,
        "timed_out": 1,
        "errors": 2,
    }


def test_rounds_become_medians_and_parts_of_ours_and_of_the_ceiling():
    load_ = (640, 4)
    rows = {
        (servers.OURS, "captioner", *load_): [{"per_s": 8.0}, {"per_s": 30.0}, {"per_s": 10.0}],
        ("litserve", "plain", *load_): [{"per_s": 5.0}],
    }
    seen = peers.summed_up(rows, {640: 20.0})
    assert seen[servers.OURS, "captioner", *load_] == {"per_s": 10, "of_ours": 1, "of_ceiling": 0.5}
    assert seen["litserve", "plain", *load_]["of_ours"] == 0.5


def test_ours_comes_first_and_each_peer_once_with_each_engine():
    chosen = servers.contenders_of(["litserve", "mosec"], ["plain", "captioner"])
    assert chosen[0] == (servers.OURS, "captioner")
    assert len(set(chosen)) == len(chosen) == 5
    with_several = servers.contenders_of(["mosec"], ["plain"], services=4)
    assert [name for name, _ in with_several] == [servers.OURS, servers.BALANCED, "mosec"]


def test_without_haproxy_the_others_are_measured(monkeypatch, tmp_path):
    conditions = servers.Conditions(SHIPPED, 1, 1.0, 1.0, tmp_path, "float32", services=2)
    contenders = servers.contenders_of([], [], services=2)
    monkeypatch.setenv("PATH", "")
    versions, reasons = servers.installed(contenders, conditions)
    assert list(versions) == [servers.OURS]
    assert reasons == {contenders[1]: "there is no haproxy on the PATH"}


def test_every_peer_has_its_server():
    files = {path.stem for path in servers.SERVERS.glob("*_server.py")}
    assert files == {
        f"{name}_server" for name in (servers.BALANCED, servers.ON_RAY, *servers.PEERS)
    }


def test_the_size_of_the_install_counts_what_is_required_and_no_more():
    sizes = startup.installed_bytes("caption-service")
    assert {"numpy", "pillow", "httptools"} <= sizes.keys()  # httptools by an extra of uvicorn
    assert not {"pytest", "tensorboard"} & sizes.keys()
    assert sizes["numpy"] > 10 * 2**20


def test_the_cost_of_an_alternative_is_told_in_ours_at_its_best_batch():
    ours, other = {"ms": {"1": 50.0, "8": 25.0}}, {"ms": {"1": 500.0, "8": 400.0}}
    assert alternatives._times(other, ours) == 16


# --- more processes of HTTP ---------------------------------------------------------------------


def test_rounds_that_others_disturbed_do_not_count_unless_there_are_no_others():
    def row(per_s, others):
        return fronts.Row(*[1.0] * len(fronts.Row._fields))._replace(per_s=per_s, others=others)

    quiet, of_quiet = fronts._of_quiet_times([row(300, 0.05), row(100, 1.0), row(310, 0.02)], 0.1)
    assert (quiet, of_quiet.per_s) == (2, 305)
    quiet, of_all = fronts._of_quiet_times([row(90, 0.9), row(100, 1.0), row(110, 1.1)], 0.1)
    assert (quiet, of_all.per_s) == (0, 100)


def test_an_engine_that_takes_no_time_says_of_each_image_what_it_said_of_the_first(tmp_path):
    directory = save_tiny_checkpoint(tmp_path)
    captioner = instant.InstantStore(Settings(device="cpu")).load(directory)
    side_px = captioner.manifest.image.size_px
    images = [np.full((side_px, side_px, 3), 80 * n, np.uint8) for n in range(3)]
    first, *others = captioner.caption(images).captions
    assert [[each.text for each in other] for other in others] == [[c.text for c in first]] * 2
    captioner.check_golden()


# --- results ------------------------------------------------------------------------------------

LINE = {"benchmark": "peers", "reason": "/home/somebody/peers/ray/bin/python", "photos": 3}
FOLDER = Path(__file__).resolve().parent


def test_a_result_is_printed_and_kept_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "peers.py"), str(tmp_path / "photo.jpg")])
    output = tmp_path / "results" / "peers.md"
    table = ["server  photos/s", "mosec        1.0"]
    result.report(table, {"benchmark": "peers", "per_s": 1.0}, output)
    *printed, line = capsys.readouterr().out.splitlines()
    kept = output.read_text(encoding="utf-8")
    assert printed == table
    assert "\n".join(table) in kept
    assert f"```json\n{line}\n```" in kept
    assert json.loads(line) == {"benchmark": "peers", "per_s": 1.0}
    assert "`python benchmarks/peers.py photo.jpg`" in kept


def test_a_result_without_a_file_is_only_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result.report(["table"], {"benchmark": "limit"}, None)
    assert capsys.readouterr().out == 'table\n{"benchmark": "limit"}\n'
    assert list(tmp_path.iterdir()) == []


def test_a_page_names_what_was_run_and_on_what():
    page = result.page(["table"], LINE, ["benchmarks/peers.py", "--rounds", "3"])
    assert page.startswith("# peers\n")
    for fact in (
        "`python benchmarks/peers.py --rounds 3`",
        f"torch: {importlib.metadata.version('torch')}",
        f"commit: {result.commit()}",
        result.cpu_model(),
    ):
        assert fact in page


def test_a_page_shows_no_folder_of_this_machine():
    reason = f"{FOLDER}/peers/python failed"
    page = result.page([reason], {"benchmark": "peers", "reason": reason}, ["peers.py", reason])
    assert str(FOLDER.parent) not in page
    assert page.count("python failed") == 3


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (f"{FOLDER}/photo.jpg", "photo.jpg"),
        (f"--cache={FOLDER}", f"--cache={FOLDER.name}"),
        ("../shared/photos/plane.jpg", "plane.jpg"),
        ("~/photos/plane.jpg", "plane.jpg"),
        ("benchmarks/results/peers.md", "benchmarks/results/peers.md"),
        ("photos/s /ours /ceiling", "photos/s /ours /ceiling"),
        ("POST http://127.0.0.1:8000/v1/captions", "POST http://127.0.0.1:8000/v1/captions"),
        ("/v1/captions answers 503", "/v1/captions answers 503"),
    ],
)
def test_only_folders_of_this_machine_are_taken_for_paths(typed, told):
    assert result.without_paths(typed) == told


def test_a_processor_has_a_name_without_linux_too(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU 3000\nflags\t: a\n")
    assert result.cpu_model(tmp_path / "cpuinfo") == "Fast CPU 3000"
    assert result.cpu_model(tmp_path / "missing")


def test_the_instructions_that_make_a_network_fast_are_told(tmp_path):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx avx2 avx512_bf16\n")
    assert result.cpu_instructions(tmp_path / "cpuinfo") == ", avx2, avx512_bf16"
    assert result.cpu_instructions(tmp_path / "missing") == ""


def test_a_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert result.commit() == "unknown"


def test_every_program_can_keep_its_result():
    programs = {path.name: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
    keep = ("result.add_output(", "shared_arguments(__doc__)")
    lacking = [
        name
        for name, code in programs.items()
        if "__main__" in code and not ("result.report(" in code and any(k in code for k in keep))
    ]
    assert lacking == []


# --- steps that take turns ----------------------------------------------------------------------


def test_steps_take_turns():
    seen = []
    steps = {name: limit.timed("all", partial(seen.append, name), 1) for name in "ab"}
    taken_ms = limit.medians_ms(steps, 3)
    assert "".join(seen) == "ababab"
    assert taken_ms.keys() == {"a", "b"}
    assert all(each["all"] >= 0 for each in taken_ms.values())


def test_a_stage_is_told_by_its_median_and_per_image():
    runs = iter([{"decode": 0.2}, {"decode": 0.8}, {"decode": 0.4}])
    steps = {"a": limit.Step(lambda: next(runs), 4)}
    assert limit.medians_ms(steps, 3) == {"a": {"decode": 100}}


def test_images_take_turns_until_the_batch_is_full():
    assert limit.filled([0, 1], 5) == [0, 1, 0, 1, 0]
    assert len(limit.filled([0, 1], 1)) == 1


def test_every_stage_is_timed(tiny):
    args = argparse.Namespace(batches=[2], repeats=1, seconds=0)
    rows = limit.measure(tiny.captioner, photo(), args)
    assert tuple(rows[2]) == (*limit.STAGES, "per_s")
    assert sum(rows[2][name] for name in limit.STAGES[:-1]) <= rows[2]["whole"]
    assert limit.table_of(rows)[1].split() == ["batch", *limit.STAGES, "images/s"]


def test_a_batch_on_all_cores_says_what_it_says_on_one(tiny):
    images = [tiny.captioner.read(photo(n), max_pixels=limit.MAX_PIXELS) for n in range(5)]
    on_two = Captioner.of(tiny.loaded, precision="float32", workers=2)
    said = [best.text for best, *_ in limit.side_by_side(on_two, images)]
    assert said == [best.text for best, *_ in tiny.captioner.caption(images).captions]


# --- cost as work grows -------------------------------------------------------------------------

GROWN = {
    "batches": [1, 3],
    "sizes": [80, 160],
    "beams": [1, 2],
    "lengths": [2, 5],
    "batch": 2,
    "repeats": 1,
    "precision": "float32",
}


@pytest.fixture
def tiny(tmp_path):
    loaded = checkpoint.load(save_tiny_checkpoint(tmp_path))
    captioner = Captioner.of(loaded, precision="float32")
    images = [captioner.read(photo(n), max_pixels=limit.MAX_PIXELS) for n in range(2)]
    return SimpleNamespace(
        loaded=loaded, captioner=captioner, images=images, args=argparse.Namespace(**GROWN)
    )


def columns_of(rows):
    return {grown: list(row) for grown, row in rows.items()}


def test_cost_is_told_by_batch_size(tiny):
    rows = growth.by_batch(tiny.captioner, tiny.images, tiny.args)
    columns = ["encode ms", "search ms", "whole ms", "images/s"]
    assert columns_of(rows) == {1: columns, 3: columns}
    assert rows[3]["images/s"] == pytest.approx(1e3 / rows[3]["whole ms"])


def test_cost_is_told_by_image_size(tiny, tmp_path):
    (tmp_path / "photo.png").write_bytes(photo())
    rows = growth.by_size(tiny.captioner, [tmp_path / "photo.png"], tiny.args)
    columns = ["decode ms", "encode ms", "search ms", "whole ms", "images/s"]
    assert columns_of(rows) == {80: columns, 160: columns}


def test_cost_is_told_by_beam_width(tiny):
    rows = growth.by_beam(tiny.loaded, tiny.images, tiny.args)
    assert list(rows) == [1, 2]
    assert all(1 <= row["words"] <= tiny.loaded.manifest.search.max_words for row in rows.values())


def test_every_caption_has_the_length_that_is_asked_about(tiny):
    rows = growth.by_length(tiny.loaded, tiny.images, tiny.args)
    assert {words: row["words"] for words, row in rows.items()} == {2: 2, 5: 5}
    five = growth.searching(tiny.loaded, "float32", min_words=5, max_words=5)
    said = five.caption(tiny.images).captions
    assert {len(each.words) for candidates in said for each in candidates} == {5}


def test_another_search_leaves_the_checkpoint_as_it_is(tiny):
    changed = growth.searching(tiny.loaded, "float32", beam_width=7)
    assert changed.manifest.search == replace(tiny.loaded.manifest.search, beam_width=7)
    assert tiny.loaded.manifest.search.beam_width == 3


def test_rounds_of_clients_become_medians_and_errors_are_added_up():
    seen = [(10, 10, 1, 5, 9), (30, 10, 0, 7, 8), (20, 10, 2, 6, 7)]
    rounds = [load.Outcome(*each) for each in seen]
    assert growth.middle(rounds) == {"photos/s": 2, "p50 ms": 6, "p99 ms": 8, "errors": 3}


def test_a_table_has_a_row_for_each_step_of_growth():
    rows = {1: {"photos/s": 2.0, "p99 ms": 10.0}, 64: {"photos/s": 4.0, "p99 ms": 900.5}}
    _, head, *lines = growth.table_of(growth.QUESTIONS["clients"], rows)
    assert head.split() == ["clients", "photos/s", "p99", "ms"]
    assert [line.split() for line in lines] == [["1", "2.0", "10.0"], ["64", "4.0", "900.5"]]
    assert len({len(line) for line in (head, *lines)}) == 1


@pytest.mark.parametrize("name", growth.QUESTIONS)
def test_a_plot_is_small_and_stands_on_white(name, tmp_path):
    pytest.importorskip("matplotlib", exc_type=ImportError)
    question = growth.QUESTIONS[name]
    columns = [column for chart in question.charts for column in chart.columns]
    rows = {n: dict.fromkeys(columns, float(n)) for n in (1, 2, 4, 8, 16, 32, 64)}
    growth.write_plots(tmp_path, {name: rows})
    svg = (tmp_path / f"growth-{name}.svg").read_text(encoding="utf-8")
    assert len(svg) < 60_000
    assert "fill: #ffffff" in svg
    assert f">{question.grows}</text>" in svg
    assert all(chart.unit in svg for chart in question.charts)


# --- what was asked before ----------------------------------------------------------------------


def test_a_server_rests_once_it_answers_a_request_alone(monkeypatch):
    """Twice in a row: one may share its batch with what is left."""
    said = iter([TimeoutError(), (503, b""), (200, b""), (200, b""), (200, b""), "asked too often"])

    def ask(*_, **__):
        answer = next(said)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(load, "ask", ask)
    load.let_it_rest(1, load.Post("/", b"", ""))
    assert list(said) == ["asked too often"]
    monkeypatch.setattr(load, "ask", lambda *_, **__: (503, b""))
    with pytest.raises(TimeoutError, match="still busy"):
        load.let_it_rest(1, load.Post("/", b"", ""))


def test_no_peer_is_measured_while_it_works_off_who_has_left(monkeypatch):
    """One client waited two seconds for the 64 before him: the peers looked slow that are not."""
    did = []
    monkeypatch.setattr(load, "closed_loop", lambda *_, **__: did.append("load"))
    monkeypatch.setattr(load, "let_it_rest", lambda *_, **__: did.append("rest"))
    monkeypatch.setattr(peers, "measured", lambda *asked: did.append(("measure", *asked[2:])))
    server = SimpleNamespace(port=1, posts=list)
    args = argparse.Namespace(concurrencies=[1, 64], warm_up_s=1.0, seconds=1.0, timeout_s=1.0)
    list(peers._measured(server, {80: [b"a"], 160: [b"b"]}, args))
    lone, many = ("measure", 1, peers.LONE_TIMES * 1.0), ("measure", 64, 1.0)
    assert did == ["load", *["rest", lone, "rest", many] * 2]


# --- with a service and without -----------------------------------------------------------------


def test_medians_are_told():
    one = overhead.OneClient.of([(10, 19), (20, 22), (30, 33)])
    many = overhead.middle([overhead.ManyClients(50, per_s) for per_s in (50, 40, 9)])
    assert (one, many) == ((20, 22, 3), (50, 40))
    *_, head, line = overhead.table_of({640: (one, many)}, clients=16)
    assert head.split() == ["px", "pipeline", "service", "more", "pipeline/s", "service/s", "share"]
    assert line.split() == ["640", "20.0", "22.0", "3.0", "50.0", "40.0", "0.80"]


def bare_captioner(caption, *, workers=1):
    engine = SimpleNamespace(max_concurrent_batches=workers)
    return SimpleNamespace(read=lambda photo, **_: photo, caption=caption, engine=engine)


def saying(text, images):
    return SimpleNamespace(captions=[[SimpleNamespace(text=text)] for _ in images])


def test_a_rate_is_photos_over_time():
    def caption(images):
        batches.append(images)
        time.sleep(0.01)

    batches = []
    per_s = limit.whole_per_s(bare_captioner(caption, workers=2), [b"a", b"b", b"c"], 8, 0.05)
    assert {len(batch) for batch in batches} == {8}
    assert 8 / 0.05 < per_s < 2 * 8 / 0.01


def test_pipeline_and_service_take_turns(picky, monkeypatch):
    @contextmanager
    def serving(contender, conditions):
        assert contender.name == servers.OURS
        turns.append("served")
        yield SimpleNamespace(port=picky, posts=lambda photos: posts(*photos))

    def caption(images):
        turns.append("bare")
        return saying("dog", images)

    turns = []
    monkeypatch.setattr(overhead, "serving", serving)
    bare = bare_captioner(caption)
    args = argparse.Namespace(
        checkpoint=Path(), threads=1, precision="float32", clients=3, rounds=2, seconds=0.2
    )
    rows = overhead.measured(bare, {64: [b"a1", b"a2"]}, args)
    assert list(rows) == [64]
    one, many = rows[64]
    assert all(figure > 0 for figure in (one.bare_ms, one.service_ms, *many))
    assert turns[0] == "served"
    # each photo is compared first
    assert turns.count("bare") >= 2 + (overhead.IN_A_ROW + 2) * args.rounds


def test_a_service_that_says_something_else_is_not_measured(picky, monkeypatch):
    server = SimpleNamespace(port=picky, posts=lambda photos: posts(*photos))
    monkeypatch.setattr(overhead, "serving", lambda *_: nullcontext(server))
    bare = bare_captioner(partial(saying, "cat"))
    args = argparse.Namespace(
        checkpoint=Path(), threads=1, precision="float32", rounds=1, seconds=0.2
    )
    with pytest.raises(servers.Unavailable, match="'dog' instead of 'cat'"):
        overhead.measured(bare, {64: [b"a1"]}, args)


def test_a_service_that_refuses_a_photo_is_not_timed(picky):
    server = SimpleNamespace(port=picky, posts=lambda photos: posts(*photos))
    bare = bare_captioner(lambda _: None)
    with pytest.raises(servers.Unavailable, match="503"):
        uvloop.run(overhead.pairs_ms(bare, server, [b"no photo"], 1.0))


def test_without_psutil_no_server_is_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(servers.subprocess, "Popen", None)  # would fail
    conditions = servers.Conditions(SHIPPED, 1, 1.0, 1.0, Path(), "float32")
    with (
        pytest.raises(servers.Unavailable, match="make bench"),
        servers.serving(servers.Contender(servers.OURS, "captioner"), conditions),
    ):
        pass


# --- on a GPU -----------------------------------------------------------------------------------


def test_the_operations_of_an_encoder_are_counted():
    convolution = torch.nn.Conv2d(3, 4, kernel_size=3, bias=False)
    encoder = torch.nn.Sequential(ToFloat(), convolution)
    assert gpu.flops_per_image(encoder, 10) == 2 * (3 * 3 * 3) * 4 * (8 * 8)


class ToFloat(torch.nn.Module):
    def forward(self, images_BCHW):
        return images_BCHW.float()


def test_the_shipped_encoder_takes_what_its_paper_says():
    encoder = tiny_unpublished().network.encoder  # a MobileNetV2 as well: 300 million each
    assert gpu.flops_per_image(encoder, 224) == pytest.approx(2 * 300e6, rel=0.05)


def test_the_rate_of_a_matrix_product_is_measured(monkeypatch):
    monkeypatch.setattr(gpu, "MATMULS", 2)
    assert gpu.matmul_flops_per_s(torch.device("cpu"), width=16) > 0


def test_stages_are_told_by_batch_size(tiny):
    network = torch_checkpoint.of(tiny.loaded).network
    taken_ms = gpu.stages_ms(tiny.captioner, network, tiny.images, tiny.args)
    assert list(taken_ms) == [1, 3]
    stages = {"encoder", "encode", "search", "whole", "beside"}
    assert all(set(row) == stages for row in taken_ms.values())
    assert all(0 < row["encode"] + row["search"] <= row["whole"] for row in taken_ms.values())


TAKEN_MS = {"encoder": 0.5, "whole": 2.0, "beside": 1.0, "encode": 0.5, "search": 1.0}


def test_milliseconds_become_rates_and_parts():
    row = gpu.row_of(TAKEN_MS, flops=10**9, matmul=4e12)
    assert row == {
        "encoder_per_s": 2000,
        "whole_per_s": 500,
        "beside_per_s": 1000,
        "encode_part": 0.25,
        "search_part": 0.5,
        "rest_part": 0.25,
        "encoder_tflops": 2,
        "of_matmul": 0.5,
    }


def test_captions_that_differ_from_the_cpus_are_shown(tmp_path):
    dog, cat = (Caption(text, -1.5, -0.5, ()) for text in ("a dog", "a cat"))
    pairs = [gpu.Pair("one.jpg", dog, dog), gpu.Pair("two.jpg", dog, cat)]
    row = gpu.row_of(TAKEN_MS, flops=10**9, matmul=4e12)
    head, line, same, differing = gpu.table_of({128: row}, pairs)
    assert len(head) == len(line)
    assert same == "1 of 2 captions are the CPU's, word for word"
    assert differing == "two.jpg: CPU 'a dog', GPU 'a cat'"


def test_the_same_captioner_twice_says_the_same(tiny, tmp_path):
    (tmp_path / "photo.png").write_bytes(photo())
    (pair,) = gpu.compared(tiny.captioner, tiny.captioner, [tmp_path / "photo.png"])
    assert pair.photo == "photo.png"
    assert pair.cpu.text == pair.gpu.text


def test_without_a_gpu_the_program_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "photo.jpg"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "CUDA" in capsys.readouterr().err


def test_every_program_stands_in_the_readme():
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    programs = [path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text()]
    assert [name for name in programs if f"| `{name}` |" not in readme] == []


# --- two trees ----------------------------------------------------------------------------------


def test_the_one_who_begins_changes_from_round_to_round():
    asked = []

    def measure(side):
        asked.append(side)
        return float(side)

    assert [before_after.in_turns(measure, turn) for turn in range(3)] == [(0, 1)] * 3
    assert asked == [0, 1, 1, 0, 0, 1]


def test_rounds_of_two_trees_become_medians_and_ratios():
    row = before_after.summed_up([(10.0, 20.0), (20.0, 30.0), (30.0, 90.0)])
    assert row == {"before": 20, "after": 30, "ratio": 2}
    assert str(before_after.summed_up([(0, 1)])["ratio"]) == "nan"
    *_, line = before_after.table_of({"photos/s": row}, "a machine")
    assert line == "| photos/s | 20 | 30 | 2.00 |"


def test_each_tree_runs_its_own_code(tmp_path):
    other = tmp_path / "other"
    (other / "app").mkdir(parents=True)
    (other / "app" / "__init__.py").write_text("")
    with before_after.trees([PROJECT_ROOT, other]) as both:
        assert [tree.folder for tree in both] == [PROJECT_ROOT, other]
        environment = both[1].environment(deadline_s=2)
    assert environment["PYTHONPATH"].startswith(str(other))
    assert environment["CAPTION_DEADLINE_S"] == "2"


def test_what_is_no_tree_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no checkout"), before_after.trees([tmp_path]):
        pass


def test_a_load_of_two_trees_is_told_by_size_and_clients(picky, monkeypatch):
    servers_ = [servers.Server(1, picky, servers.SERVICE[servers.OURS]) for _ in range(2)]
    asked = []

    def seen(server, photos, clients, seconds):
        asked.append((clients, seconds))
        return load.Outcome(10, 5, 1, 40.0, 50.0)

    monkeypatch.setattr(before_after, "_seen", seen)
    monkeypatch.setattr(before_after.Meter, "memory_bytes", lambda _: 2**21)
    args = argparse.Namespace(sizes=[64], clients=[4], rounds=2, seconds=1.0, warm_up_s=0.5)
    assert before_after.of_loads(servers_, {64: [b"a"]}, args) == {
        "photos/s, 4 clients, 64 px": [(2, 2)] * 2,
        "ms, one client, median, 64 px": [(40, 40)] * 2,
        "requests refused or broken": [(4, 4)],
        "MiB of all processes after load": [(2, 2)],
    }
    alone = (1, before_after.LONE_TIMES * 1.0)
    assert asked == [(4, 0.5)] * 2 + [*[(4, 1.0)] * 2, *[alone] * 2] * 2


# --- the costliest upload -----------------------------------------------------------------------


def test_an_upload_is_decoded_and_fitted_in_a_child_process():
    assert costliest.measured(photo()).told == "read"
    assert costliest.measured(b"no image").told == "unsupported_image"


def test_the_parameters_of_a_checkpoint_are_those_of_its_network(tmp_path):
    counted = sum(each.numel() for each in tiny_unpublished().network.parameters())
    assert alternatives.parameters_of(save_tiny_checkpoint(tmp_path)) == counted


def test_the_ablation_begins_with_plain_torch_and_ends_with_all_cores(tiny, tmp_path):
    ways = ablation.captioners(tmp_path / "tiny" / "1", 2)
    first, second, *_, last = ways
    assert (first, second) == (ablation.PLAIN, "our engine in float32, one core")
    assert last.endswith("2 cores")
    rows = ablation.measured(ways, tiny.images, 1)
    assert all(set(row) == set(ablation.BATCHES) for row in rows.values())
    assert ablation.table_of(rows)[2].split()[-1] == "1.00"


# swap


def test_requests_that_overlap_with_a_swap_are_told_from_the_others():
    swaps = [swap.Span(10.0, 12.0), swap.Span(20.0, 21.0)]
    asked = [
        swap.Asked(8.0, 9.0, 200),
        swap.Asked(9.5, 10.5, 200),  # the swap began meanwhile
        swap.Asked(11.9, 14.9, 200),
        swap.Asked(12.0, 12.5, 503),  # it had ended
        swap.Asked(20.2, 20.4, 0),
        swap.Asked(20.5, 20.6, 503),
    ]
    memory_mb = [(5.0, 300.0), (11.0, 600.0), (22.0, 400.0)]
    row = swap.summary(swap.Seen(asked, swaps, memory_mb))
    assert (row["between_requests"], row["during_requests"]) == (1, 2)
    assert (row["between_p99_ms"], row["during_p99_ms"]) == (1000, pytest.approx(3000))
    assert row["p99_ratio"] == pytest.approx(3)
    assert (row["refused_between"], row["refused_during"], row["broken"]) == (1, 1, 1)
    assert (row["swaps"], row["swap_s"]) == (2, 1.5)
    assert (row["rss_before_mb"], row["rss_most_mb"], row["rss_after_mb"]) == (300, 600, 400)
    assert len(load.table("load", swap.COLUMNS, {"full": row})) == 2


def test_a_tiny_checkpoint_is_swapped_under_a_tiny_load(checkpoint):
    with swap.service(checkpoint, threads=1) as server:
        posts = server.posts(load.photos([], 64))
        seen = asyncio.run(swap.Load(server, posts).full(clients=2, swaps=2, between_s=0.2))
    row = swap.summary(seen)
    assert (row["swaps"], row["broken"], row["refused_during"]) == (2, 0, 0)
    assert row["between_requests"] > 0


# side by side


def test_tiny_checkpoints_are_asked_side_by_side(checkpoint, tmp_path):
    checkpoints = swap.copies(checkpoint, tmp_path, 3)
    with (
        side_by_side.service(checkpoints[:1], threads=1) as one,
        side_by_side.service(checkpoints[:2], threads=1) as two,
        side_by_side.service(checkpoints, threads=1) as three,
    ):
        rows = side_by_side.measured(
            {1: one, 2: two, 3: three},
            checkpoints,
            load.photos([], 64),
            clients=2,
            rounds=1,
            seconds=0.3,
        )
        asking = side_by_side.posts(load.photos([], 64)[:1], checkpoints)
        named = [json.loads(load.ask(three.port, post)[1])["model"]["version"] for post in asking]
    assert named == ["1", "2", "3"]
    assert [row["errors"] for row in rows.values()] == [0] * 4
    assert rows["1 served, 1 asked"]["ratio"] == 1
    assert all(row["per_s"] > 0 for row in rows.values())
    assert 0 < rows["1 served, 1 asked"]["loaded_mb"] < rows["3 served, 3 asked"]["loaded_mb"]
    assert len(load.table("checkpoints", side_by_side.COLUMNS, rows)) == 5
