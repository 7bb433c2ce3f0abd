"""A run that is killed, at any moment, goes on as if nothing had happened."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

import trainer.training.run_directory
from app.captioner import checkpoint
from app.captioner.errors import CheckpointError
from support.runs import fit, log, same_weights, weights
from trainer.training.context import TrainingContext

CACHED = "{kind='cached', epochs=2, batch_images=2}"
AVERAGED = [f"stages=[{CACHED}, {{kind='average', averaged_epochs=2}}]"]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


WHOLE = {name: getattr(Path, name) for name in ("write_text", "write_bytes")}


def half_text(path, content, *rest):
    WHOLE["write_text"](path, content[: len(content) // 2])


def half_bytes(path, content):
    WHOLE["write_bytes"](path, content[: len(content) // 2])


def half_state(content, file):
    file.write(b"half")


def half_removed(path, **options):
    for file in [each for each in Path(path).rglob("*") if each.is_file()][:1]:
        file.unlink()


def nothing(*args):
    pass


INTERRUPTED = [
    (Path, "write_text", half_text),
    (Path, "write_bytes", half_bytes),
    (Path, "rename", nothing),
    (Path, "replace", nothing),
    (shutil, "rmtree", half_removed),
    (torch, "save", half_state),
    (trainer.training.run_directory, "save_file", nothing),
]


def kill_at(patch, moment: int) -> None:
    """Let the moment-th change of the disk be half done, and the process with it."""
    changes = itertools.count(1)
    for owner, name, half in INTERRUPTED:
        whole = getattr(owner, name)

        def act(*args, whole=whole, half=half, **options):
            number = next(changes)
            if number < moment:
                return whole(*args, **options)
            if number == moment:
                half(*args, **options)
            raise Killed

        patch.setattr(owner, name, act)


def a_best_checkpoint_is_there(run: Path) -> bool:
    for name in ("best", "best.next", "best.previous"):
        try:
            checkpoint.load(run / name)
        except CheckpointError:
            continue
        return True
    return False


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def dies(place: Path, monkeypatch, moment: int) -> bool:
    with monkeypatch.context() as patch:
        kill_at(patch, moment)
        try:
            return fit(place, "killed", *AVERAGED) != 0
        except Killed:
            return True


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_killed_at_any_change_of_the_disk_ends_like_one_left_alone(place, monkeypatch):
    assert fit(place, "whole", *AVERAGED) == 0
    for moment in itertools.count(1):
        shutil.rmtree(place / "killed", ignore_errors=True)
        if moment <= 12:  # then the cache too is half written
            shutil.rmtree(place / "cache")
        if not dies(place, monkeypatch, moment):
            break
        if (place / "killed" / "state.pt").exists():
            assert a_best_checkpoint_is_there(place / "killed")
        assert fit(place, "killed", *AVERAGED) == 0
        assert_alike(place / "killed", place / "whole")
    assert moment > 30


def assert_alike(killed: Path, whole: Path) -> None:
    place = whole.parent
    assert same_weights(weights(place, "killed"), weights(place, "whole"))
    assert without_seconds(log(place, "killed")) == without_seconds(log(place, "whole"))
    best = [checkpoint.load(run / "best").manifest.files for run in (killed, whole)]
    assert best[0] == best[1]
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_kill_between_two_steps_costs_one_epoch(place, monkeypatch):
    assert fit(place, "whole") == 0

    def kill_in_the_third_epoch(*args, **kwargs):
        if len(log(place, "killed")) == 2:
            raise Killed
        return cross_entropy(*args, **kwargs)

    cross_entropy = torch.nn.functional.cross_entropy
    (place / "killed").mkdir()
    (place / "killed" / "log.jsonl").write_text("")
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", kill_in_the_third_epoch)
    with pytest.raises(Killed):
        fit(place, "killed")
    monkeypatch.undo()
    assert len(log(place, "killed")) == 2
    assert fit(place, "killed") == 0
    assert same_weights(weights(place, "killed"), weights(place, "whole"))
    best = [checkpoint.read_manifest(place / run / "best").files for run in ("killed", "whole")]
    assert best[0] == best[1]


def test_a_kill_between_two_stages_changes_nothing(place, monkeypatch):
    recipe = (place / "recipe.toml").read_text()
    head, cached, tuned = recipe.replace("epochs = 2", "epochs = 1").split("[[stages]]")
    clipped = f"[[stages]]{tuned}[[stages]]{cached}max_gradient_norm = 0.1\n"
    (place / "recipe.toml").write_text(head + clipped)
    assert fit(place, "whole") == 0
    save = TrainingContext.save

    def save_and_die(self, progress):
        save(self, progress)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingContext, "save", save_and_die)
        with pytest.raises(Killed):
            fit(place, "killed")
    assert fit(place, "killed") == 0
    assert same_weights(weights(place, "killed"), weights(place, "whole"))


def test_a_run_from_before_a_key_existed_goes_on(place):
    changes = ["stages.0.epochs=1", "stages.1.epochs=1"]
    assert fit(place, "run", *changes) == 0
    path = place / "run" / "recipe.json"
    old = json.loads(path.read_text())
    for stage in old["stages"]:
        del stage["ema_decay"], stage["guard_margin"]
    path.write_text(json.dumps(old))
    assert fit(place, "run", *changes) == 0
