"""Settings -> a captioner: what is missing for a device is told in one line."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from app import loading
from app.captioner.errors import CheckpointError
from app.settings import PROJECT_ROOT, Settings


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Let there be an NVIDIA driver."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(loading, "_NVIDIA_DRIVER", tmp_path / "nvidiactl")


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "torch", None)  # to import it would raise


@pytest.fixture
def no_gpu(monkeypatch):
    import torch  # noqa: PLC0415 - of this test alone

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def refused(directory, device):
    with pytest.raises(CheckpointError) as refusal:
        loading.load_captioner(Settings(checkpoint=directory, device=device))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_without_torch_is_told_with_what_to_install(checkpoint, device):
    told = f"CAPTION_DEVICE={device} needs torch: pip install 'caption-service[gpu]'"
    assert refused(checkpoint, device) == told


@pytest.mark.usefixtures("no_gpu")
def test_torch_without_a_gpu_is_told(checkpoint):
    assert refused(checkpoint, "cuda") == "CAPTION_DEVICE=cuda: torch finds no CUDA device"


@pytest.mark.usefixtures("driver", "no_torch")
def test_a_gpu_is_left_alone_without_torch_unless_it_was_asked_for():
    assert loading._device("auto") == "cpu"


@pytest.mark.usefixtures("driver", "no_gpu")
def test_a_driver_without_a_gpu_is_left_alone():
    assert loading._device("auto") == "cpu"


@pytest.mark.usefixtures("driver")
def test_a_gpu_that_torch_finds_is_taken(monkeypatch):
    import torch  # noqa: PLC0415 - of this test alone

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading._device("auto") == "cuda"
    assert loading._device("cuda:1") == "cuda:1"
    assert loading._device("cpu") == "cpu"


@pytest.mark.usefixtures("no_torch")
def test_without_a_driver_torch_is_not_even_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_NVIDIA_DRIVER", tmp_path / "nowhere")
    monkeypatch.setattr(loading, "find_spec", lambda name: pytest.fail(f"it looked for {name}"))
    assert loading._device("auto") == "cpu"


def test_a_relative_checkpoint_is_found_from_here_else_from_the_project(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    store = loading.CheckpointStore(Settings(checkpoint=Path("store/1")))
    assert store.find() == PROJECT_ROOT / "store/1"
    Path("store/1").mkdir(parents=True)
    assert store.find() == Path("store/1")


@pytest.mark.parametrize("named", ["", "model_store/"])
def test_the_shipped_checkpoint_is_found_by_its_name_alone(monkeypatch, tmp_path, named):
    shipped = PROJECT_ROOT / Settings().checkpoint
    monkeypatch.chdir(tmp_path)
    for checkpoint in (
        f"{named}{shipped.parent.name}",
        f"{named}{shipped.parent.name}@{shipped.name}",
    ):
        store = loading.CheckpointStore(Settings(checkpoint=Path(checkpoint)))
        assert store.find() == shipped


def test_the_newest_version_of_a_folder_is_loaded_and_another_by_its_number(checkpoint, tmp_path):
    folder = tmp_path / "tiny"
    for version in ("2", "10"):
        copy = shutil.copytree(checkpoint, folder / version)
        about = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**about, "version": version}))
    for named, version in [(folder, "10"), (f"{folder}@2", "2"), (folder / "2", "2")]:
        captioner = loading.load_captioner(Settings(checkpoint=Path(named), device="cpu"))
        assert captioner.manifest.version == version
    assert refused(Path(f"{folder}@3"), "cpu").endswith("no version 3; there are: 2, 10")
