"""CAPTION_* environment -> Settings."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import MOST_WORKERS, Settings, SettingsError, read_settings


def keys(settings, kind):
    return [key.get_secret_value() for key in getattr(settings, f"{kind}_keys")]


def test_an_empty_environment_gives_the_defaults():
    settings = read_settings()
    assert settings.checkpoint == Path("model_store/everyday-efficientnet-lite1/1")
    assert (settings.host, settings.port, settings.device) == ("127.0.0.1", 8000, "auto")
    assert (settings.precision, settings.inference_threads) == ("auto", 0)
    assert settings.api_keys == settings.admin_keys == ()
    assert settings.watch == 0


def test_variables_become_settings(monkeypatch):
    monkeypatch.setenv("CAPTION_PORT", "9000")
    monkeypatch.setenv("CAPTION_DEVICE", "cuda:1")
    monkeypatch.setenv("CAPTION_DEADLINE_S", "45.5")
    monkeypatch.setenv("CAPTION_PRECISION", "int8")
    monkeypatch.setenv("CAPTION_INFERENCE_THREADS", "3")
    settings = read_settings()
    assert (settings.port, settings.device, settings.deadline_s) == (9000, "cuda:1", 45.5)
    assert (settings.precision, settings.inference_threads) == ("int8", 3)


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    monkeypatch.setenv("CAPTION_PORT", "")
    monkeypatch.setenv("CAPTION_API_KEYS_FILE", "")
    assert read_settings().port == 8000


def test_several_checkpoints_are_separated_by_commas_and_the_first_leads(monkeypatch):
    monkeypatch.setenv("CAPTION_CHECKPOINTS", "store/a@4, /my photos/b,")
    monkeypatch.setenv("CAPTION_CANARY", "0.05")
    settings = read_settings()
    assert settings.served_checkpoints == (Path("store/a@4"), Path("/my photos/b"))
    assert settings.canary == 0.05


def test_one_checkpoint_is_what_is_served():
    assert Settings(checkpoint="a").served_checkpoints == (Path("a"),)
    assert Settings(checkpoints="a").served_checkpoints == (Path("a"),)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (
            {"CHECKPOINT": "a", "CHECKPOINTS": "a,b"},
            "set CAPTION_CHECKPOINT or CAPTION_CHECKPOINTS, not both",
        ),
        ({"CANARY": "0.05"}, "CAPTION_CANARY: expected two in CAPTION_CHECKPOINTS.*there are 0"),
        ({"CANARY": "0", "CHECKPOINTS": "a,b,c"}, "expected two.*there are 3"),
        ({"CANARY": "5%", "CHECKPOINTS": "a,b"}, "CAPTION_CANARY: "),
        ({"CANARY": "1.5", "CHECKPOINTS": "a,b"}, "CAPTION_CANARY: "),
    ],
)
def test_checkpoints_that_leave_a_doubt_are_refused(monkeypatch, told, reason):
    for name, value in told.items():
        monkeypatch.setenv(f"CAPTION_{name}", value)
    with pytest.raises(SettingsError, match=reason):
        read_settings()


def test_a_checkpoint_of_the_command_line_takes_the_place_of_all(monkeypatch):
    monkeypatch.setenv("CAPTION_CHECKPOINTS", "a,b")
    monkeypatch.setenv("CAPTION_CANARY", "0.05")
    settings = read_settings({"checkpoint": "c"})
    assert settings.served_checkpoints == (Path("c"),)
    assert settings.canary is None


@pytest.mark.parametrize(
    "name", ["CAPTION_MAX_BATHC", "CAPTION_TORCH_THREADS", "CAPTION_LANE_PROCESSES"]
)
def test_an_unknown_name_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(SettingsError, match=name):
        read_settings()


@pytest.mark.parametrize(
    "name",
    [
        "CAPTION_SERVICE_SERVICE_HOST",
        "CAPTION_SERVICE_SERVICE_PORT_HTTP",
        "CAPTION_SERVICE_PORT",
        "CAPTION_SERVICE_PORT_8000_TCP_ADDR",
    ],
)
def test_what_kubernetes_puts_beside_our_settings_is_not_ours(monkeypatch, name):
    monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    assert read_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CAPTION_PORT", "http"),
        ("CAPTION_PORT", "70000"),
        ("CAPTION_DEVICE", "tpu"),
        ("CAPTION_LOG_LEVEL", "loud"),
        ("CAPTION_MAX_BATCH", "0"),
        ("CAPTION_DEADLINE_S", "inf"),
        ("CAPTION_DEADLINE_S", "-1"),
        ("CAPTION_PRECISION", "float16"),
        ("CAPTION_WATCH", "-1"),
        ("CAPTION_WATCH", "always"),
        ("CAPTION_INFERENCE_THREADS", "-1"),
        ("CAPTION_INFERENCE_THREADS", str(MOST_WORKERS + 1)),
    ],
)
def test_an_invalid_value_is_refused_with_the_name_of_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: "):
        read_settings()


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("CAPTION_MAX_UPLOAD_BYTES", "CAPTION_MAX_INFLIGHT_BYTES"),
        ("CAPTION_MAX_IMAGES", "CAPTION_MAX_QUEUE"),
        ("CAPTION_MAX_UPLOAD_BYTES", "CAPTION_MAX_CLIP_BYTES"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(monkeypatch, smaller, larger):
    monkeypatch.setenv(smaller, "9")
    monkeypatch.setenv(larger, "8")
    with pytest.raises(SettingsError, match=f"^{smaller} is 9.* and {larger} 8"):
        read_settings()


def test_only_a_limit_of_clips_that_somebody_set_can_contradict_that_of_photos(monkeypatch):
    monkeypatch.setenv("CAPTION_MAX_CLIP_BYTES", "1000")
    with pytest.raises(SettingsError, match=r"CAPTION_MAX_CLIP_BYTES 1000: the first must not"):
        read_settings()
    monkeypatch.setenv("CAPTION_CLIPS", "false")
    assert read_settings().max_clip_bytes == 1000
    monkeypatch.delenv("CAPTION_CLIPS")
    monkeypatch.delenv("CAPTION_MAX_CLIP_BYTES")
    monkeypatch.setenv("CAPTION_MAX_UPLOAD_BYTES", str(100 * 2**20))
    assert read_settings().max_upload_bytes == 100 * 2**20


each_kind = pytest.mark.parametrize("kind", ["api", "admin"])


@each_kind
def test_several_keys_may_be_given_and_are_never_shown(monkeypatch, kind):
    monkeypatch.setenv(f"CAPTION_{kind.upper()}_KEYS", "old-secret, new-secret")
    settings = read_settings()
    assert keys(settings, kind) == ["old-secret", "new-secret"]
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings.model_dump(mode="json"))


@each_kind
def test_keys_come_from_a_file(monkeypatch, tmp_path, kind):
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    monkeypatch.setenv(f"CAPTION_{kind.upper()}_KEYS_FILE", str(file))
    assert keys(read_settings(), kind) == ["one", "two"]


@each_kind
def test_a_missing_or_empty_key_file_does_not_open_the_door(monkeypatch, tmp_path, kind):
    file, name = tmp_path / "keys", f"CAPTION_{kind.upper()}_KEYS_FILE"
    monkeypatch.setenv(name, str(file))
    with pytest.raises(SettingsError, match=f"{name}: cannot read"):
        read_settings()
    file.write_text("\n")
    with pytest.raises(SettingsError, match="holds no key"):
        read_settings()


@each_kind
def test_keys_from_two_places_are_refused(monkeypatch, tmp_path, kind):
    monkeypatch.setenv(f"CAPTION_{kind.upper()}_KEYS", "a")
    monkeypatch.setenv(f"CAPTION_{kind.upper()}_KEYS_FILE", str(tmp_path))
    with pytest.raises(SettingsError, match="not both"):
        read_settings()


@each_kind
def test_a_bad_key_is_refused_without_being_shown(monkeypatch, kind):
    name = f"CAPTION_{kind.upper()}_KEYS"
    monkeypatch.setenv(name, "schlüssel")
    with pytest.raises(SettingsError, match=f"{name}: keys are printable ASCII") as error:
        read_settings()
    assert "schl" not in str(error.value)


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_importing_every_module_reads_no_setting():
    program = (
        "import os; os.environ['CAPTION_PORT'] = 'nonsense'\n"
        "import app.main, app.cli, app.web.routes, app.web.admission, app.serving.service\n"
        "import sys; assert not {'torch', 'openvino'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_lists_are_separated_by_commas_or_spaces(monkeypatch):
    monkeypatch.setenv("CAPTION_CORS_ORIGINS", "https://a.example, http://localhost:3000")
    monkeypatch.setenv("CAPTION_TRUSTED_PROXIES", "10.0.0.0/8 127.0.0.1")
    monkeypatch.setenv("CAPTION_FETCH_URLS", "photos.example,*.cdn.example")
    monkeypatch.setenv("CAPTION_ROOT_PATH", "/captions/")
    settings = read_settings()
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
    assert settings.trusted_proxies == ("10.0.0.0/8", "127.0.0.1")
    assert settings.fetch_urls == ("photos.example", "*.cdn.example")
    assert settings.root_path == "/captions"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CAPTION_CORS_ORIGINS", "app.example"),
        ("CAPTION_CORS_ORIGINS", "https://app.example/"),
        ("CAPTION_TRUSTED_PROXIES", "*"),
        ("CAPTION_TRUSTED_PROXIES", "proxy.example"),
        ("CAPTION_FETCH_URLS", "https://photos.example"),
        ("CAPTION_FETCH_URLS", "photos.*"),
        ("CAPTION_ROOT_PATH", "captions"),
        ("CAPTION_ROOT_PATH", "/v1"),
    ],
)
def test_a_wrong_address_is_refused_by_the_name_of_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        read_settings()
