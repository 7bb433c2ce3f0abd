import pytest
import torch

from app.captioner import checkpoint
from app.captioner.manifest import WEIGHTS
from app.captioner.model import torch_checkpoint
from support.tiny import tiny_unpublished
from trainer.__main__ import main

MATRIX = "decoder.words.weight"


@pytest.fixture
def place(tmp_path):
    """Give three checkpoints of one network whose weights differ by whole numbers."""
    for number, name in enumerate(("one", "two", "three")):
        unpublished = tiny_unpublished()
        with torch.no_grad():
            unpublished.network.decoder.words.weight.zero_().add_(number)
        torch_checkpoint.save(tmp_path / name, unpublished)
    return tmp_path


def average(place, *names, shares=()):
    asked = ["average", *(str(place / name) for name in names), "--run", str(place / "mean")]
    return main([*asked, *(["--shares", *map(str, shares)] if shares else [])])


def test_a_mean_is_a_run_that_can_be_published(place, capsys):
    assert average(place, "one", "two", "three") == 0
    assert str(place / "mean" / "best") in capsys.readouterr().out
    loaded = torch_checkpoint.load(place / "mean" / "best")
    assert torch.equal(
        loaded.network.state_dict()[MATRIX], torch.ones_like(loaded.network.state_dict()[MATRIX])
    )
    (row,) = loaded.manifest.history
    assert [part["share"] for part in row["of"]] == [0.3333] * 3
    hashes = [checkpoint.read_manifest(place / name).files for name in ("one", "two", "three")]
    assert [part["sha256"] for part in row["of"]] == [each[WEIGHTS] for each in hashes]
    store = ["--store", str(place / "store")]
    assert main(["publish", str(place / "mean"), "--version", "1", *store]) == 0


def test_shares_are_in_any_unit(place):
    assert average(place, "one", "two", shares=(1, 3)) == 0
    mean = torch_checkpoint.load(place / "mean" / "best").network.state_dict()[MATRIX]
    assert mean.unique().tolist() == [0.75]


@pytest.mark.parametrize(
    ("names", "shares", "reason"),
    [
        (["one"], [], "two checkpoints or more"),
        (["one", "two"], [1], "expected 2 shares"),
        (["one", "two"], [1, 0], "above 0"),
        (["one", "other"], [], "another architecture"),
        (["one", "nowhere"], [], "nowhere"),
    ],
)
def test_what_has_no_mean_is_refused(place, capsys, names, shares, reason):
    torch_checkpoint.save(place / "other", tiny_unpublished(global_feature=True))
    assert average(place, *names, shares=shares) == 1
    assert reason in capsys.readouterr().err
    assert not (place / "mean").exists()


def test_a_mean_overwrites_nothing(place, capsys):
    assert average(place, "one", "two") == 0
    before = checkpoint.read_manifest(place / "mean" / "best")
    assert average(place, "two", "three") == 1
    assert "exists" in capsys.readouterr().err
    assert checkpoint.read_manifest(place / "mean" / "best") == before
