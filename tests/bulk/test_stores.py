"""The verb `bulk` on a store that speaks S3, through the addresses and settings that users give."""

import tarfile

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import dataset, fs

from app import loading
from app.cli import main
from support.fake import CAT, DOG, FakeCaptioner


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket, reached as users of other stores than Amazon's reach theirs."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    name = f"bucket-{port}"  # a connection is kept by bucket
    maker = fs.S3FileSystem(endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True)
    maker.create_dir(name)
    yield name
    server.stop()


@pytest.fixture
def captioner(monkeypatch):
    fake = FakeCaptioner()
    monkeypatch.setattr(loading, "load_captioner", lambda _: fake)
    return fake


def connected(bucket):
    files, _ = fs.FileSystem.from_uri(f"s3://{bucket}")
    return files


def put(bucket, name, data):
    with connected(bucket).open_output_stream(f"{bucket}/{name}") as file:
        file.write(data)


def captions(bucket):
    table = dataset.dataset(f"s3://{bucket}/captions", format="parquet").to_table()
    return {row["image"]: row["caption"] for row in table.to_pylist()}


def bulk(bucket):
    return main(["bulk", f"s3://{bucket}/photos", "--output", f"s3://{bucket}/captions"])


def test_photos_and_shards_of_a_store_become_rows_in_it(captioner, bucket, tmp_path):
    (tmp_path / "cat.png").write_bytes(CAT)
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(tmp_path / "cat.png", "1.png")
    put(bucket, "photos/dog.jpg", DOG)
    put(bucket, "photos/inner/0.tar", (tmp_path / "0.tar").read_bytes())
    assert bulk(bucket) == 0
    assert captions(bucket) == {
        f"s3://{bucket}/photos/dog.jpg": "a dog runs",
        f"s3://{bucket}/photos/inner/0.tar/1.png": "a cat",
    }


def test_a_second_run_does_what_is_missing_in_the_store(captioner, bucket, capsys):
    put(bucket, "photos/dog.jpg", DOG)
    assert bulk(bucket) == 0
    before = captions(bucket)
    assert bulk(bucket) == 0
    assert "0 photos" in capsys.readouterr().out.splitlines()[-1]
    connected(bucket).delete_file(f"{bucket}/captions/part-000000.parquet")
    assert bulk(bucket) == 0
    assert captions(bucket) == before


def test_no_draft_is_left_in_the_store(captioner, bucket):
    put(bucket, "photos/dog.jpg", DOG)
    assert bulk(bucket) == 0
    found = connected(bucket).get_file_info(fs.FileSelector(f"{bucket}/captions"))
    assert sorted(each.base_name for each in found) == ["_plan.jsonl", "part-000000.parquet"]


def test_a_bucket_that_is_not_there_is_told(captioner, bucket, capsys):
    assert main(["bulk", f"s3://{bucket}-2/photos", "--output", f"s3://{bucket}/captions"]) == 1
    assert f"{bucket}-2" in capsys.readouterr().err
