"""What this machine may do: ``CAPTION_*`` environment -> frozen Settings.

What the network *is* lives in the checkpoint; the two never overlap. Importing this module reads
nothing; ``read_settings`` does, and only ``cli`` and ``ray_serve`` call it.
"""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "CAPTION_"
KEY_FILES = {"api_keys": "CAPTION_API_KEYS_FILE", "admin_keys": "CAPTION_ADMIN_KEYS_FILE"}
"""Settings that are secret, and the variables that name a file with them."""
PROJECT_ROOT = Path(__file__).resolve().parents[1]
# Kubernetes puts these into containers for a Service called caption-service; they are not ours.
_SERVICE_LINK = re.compile(
    r"CAPTION_\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
_KEY = re.compile(r"[\x21-\x7e]+")

MOST_WORKERS = 32
"""Batches side by side: each has a copy of the network."""
DialectName = Literal["openai", "ollama", "huggingface", "kserve", "max"]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+|null)$")]
Host = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*)$")]


class SettingsError(Exception):
    """The environment says something we cannot start with; the message names the variable."""


class Settings(BaseSettings):
    """Every setting of the service. ``docs/configuration.md`` describes each."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    checkpoint: Path = Path("model_store/everyday-efficientnet-lite1/1")
    checkpoints: Annotated[tuple[Path, ...], NoDecode] = ()
    canary: Annotated[float, Field(ge=0, le=1)] | None = None
    watch: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    admin_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_captions: bool = False
    dialects: Annotated[tuple[DialectName, ...], NoDecode] = get_args(DialectName)

    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None

    page: bool = True

    clips: bool = True
    max_clip_bytes: Count = 64 * 2**20
    max_clip_s: Seconds = 600.0
    max_clip_frames: Count = 1200
    max_clip_pixels_per_s: Count = 500_000_000
    clip_processes: Count = 1
    clip_cpu_s: Seconds = 60.0
    clip_deadline_s: Seconds = 300.0

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    cors_origins: Annotated[tuple[Origin, ...], NoDecode] = ()
    root_path: Annotated[str, Field(pattern=r"^(/[\w.~-]+)*$")] = ""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    fetch_urls: Annotated[tuple[Host, ...], NoDecode] = ()

    max_upload_bytes: Count = 20 * 2**20
    max_pixels: Count = 40_000_000
    max_images: Count = 16
    max_inflight_requests: Count = 256
    max_inflight_bytes: Count = 256 * 2**20
    max_inflight_per_key: Count = 64
    key_requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_connections: Count = 1000
    max_key_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_queue: Count = 128
    max_queue_bytes: Count = 64 * 2**20
    max_batch: Count = 8
    decode_processes: Count = 2
    decode_cpu_s: Seconds = 3.0
    inference_threads: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = 0
    result_cache_entries: Annotated[int, Field(ge=0)] = 0

    head_timeout_s: Seconds = 20.0
    body_timeout_s: Seconds = 20.0
    body_idle_s: Seconds = 10.0
    body_min_bytes_per_s: Count = 4096
    fetch_timeout_s: Seconds = 10.0
    send_timeout_s: Seconds = 10.0
    deadline_s: Seconds = 30.0
    drain_delay_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    drain_timeout_s: Seconds = 35.0
    stuck_after_s: Seconds = 60.0
    loop_stuck_after_s: Seconds = 30.0

    @field_validator(*KEY_FILES, "cors_origins", "trusted_proxies", "fetch_urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [path.strip() for path in value.split(",") if path.strip()]

    @field_validator("dialects", mode="before")
    @classmethod
    def _split_dialects(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return () if value.strip() == "none" else value.replace(",", " ").split()

    @field_validator("root_path", mode="before")
    @classmethod
    def _without_slash(cls, value: object) -> object:
        return value.rstrip("/") if isinstance(value, str) else value

    @field_validator("root_path")
    @classmethod
    def _is_no_route(cls, value: str) -> str:
        if value.split("/")[1:2] == ["v1"]:
            raise ValueError("a prefix must not begin with /v1, as the routes do")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                ip_network(value)
            except ValueError:
                raise ValueError(f"expected addresses or networks, got {value}") from None
        return values

    @model_validator(mode="after")
    def _keys_are_usable(self) -> Self:
        for field in KEY_FILES:
            keys: tuple[SecretStr, ...] = getattr(self, field)
            if not all(_KEY.fullmatch(key.get_secret_value()) for key in keys):
                raise ValueError(f"{variable(field)}: keys are printable ASCII without spaces")
        return self

    @model_validator(mode="after")
    def _checkpoints_are_clear(self) -> Self:
        if self.checkpoints and "checkpoint" in self.model_fields_set:
            raise ValueError("set CAPTION_CHECKPOINT or CAPTION_CHECKPOINTS, not both")
        if self.canary is not None and len(self.checkpoints) != 2:
            raise ValueError(
                "CAPTION_CANARY: expected two in CAPTION_CHECKPOINTS, of which the last is tried; "
                f"there are {len(self.checkpoints)}"
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.admin_port == self.port:
            raise ValueError("CAPTION_ADMIN_PORT: expected another port than CAPTION_PORT")
        return self

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        self._at_most("max_upload_bytes", "max_inflight_bytes")
        self._at_most("max_images", "max_queue")
        if self.clips and "max_clip_bytes" in self.model_fields_set:
            self._at_most("max_upload_bytes", "max_clip_bytes")
        return self

    def _at_most(self, smaller: str, larger: str) -> None:
        if getattr(self, smaller) > getattr(self, larger):
            raise ValueError(
                f"{variable(smaller)} is {getattr(self, smaller)} and {variable(larger)} "
                f"{getattr(self, larger)}: the first must not exceed the second"
            )

    @property
    def served_checkpoints(self) -> tuple[Path, ...]:
        """What is served, however it was set; the first is what captions unless another is asked.

        At least one.
        """
        return self.checkpoints or (self.checkpoint,)

    @property
    def max_inflight_bytes_per_key(self) -> int:
        """How many of the bytes in flight may be one key's, of several: one upload always fits."""
        if len(self.api_keys) < 2:
            return self.max_inflight_bytes
        return max(self.max_upload_bytes, int(self.max_inflight_bytes * self.max_key_share))

    @property
    def most_clip_bytes(self) -> int:
        """How many bytes a clip may have: no more than one key may have in flight."""
        return min(self.max_clip_bytes, self.max_inflight_bytes_per_key) if self.clips else 0

    @property
    def max_queue_per_key(self) -> int:
        """How many of the images inside may be one key's, of several: one request always fits."""
        return max(self.max_images, int(self.max_queue * self.max_key_share))


def variable(field: str) -> str:
    """Give the environment variable of a setting."""
    return PREFIX + field.upper()


def read_settings(flags: Mapping[str, str] | None = None) -> Settings:
    """Read ``CAPTION_*`` once.

    Args:
        flags: What the command line says of settings, by their names; it wins.

    Raises:
        SettingsError: An unknown name, an invalid value, or an unreadable secret file.
    """
    flags = flags or {}
    _refuse_unknown_names()
    # one checkpoint takes the place of several, and nothing is tried beside it
    instead = {"checkpoints": (), "canary": None} if "checkpoint" in flags else {}
    try:
        return Settings(**{**_keys_of_files(), **flags, **instead})
    except ValidationError as error:
        raise SettingsError("; ".join(_complaints(error, flags))) from None


def _refuse_unknown_names() -> None:
    known = {*KEY_FILES.values(), *(variable(field) for field in Settings.model_fields)}
    ours = {name for name in os.environ if name.startswith(PREFIX)}
    unknown = sorted(name for name in ours - known if not _SERVICE_LINK.fullmatch(name))
    if unknown:
        raise SettingsError(f"unknown settings {', '.join(unknown)}: see docs/configuration.md")


def _keys_of_files() -> dict[str, Any]:
    given = {field: os.environ.get(name) for field, name in KEY_FILES.items()}
    return {field: _keys_of_file(field, path) for field, path in given.items() if path}


def _keys_of_file(field: str, path: str) -> str:
    name = KEY_FILES[field]
    if os.environ.get(variable(field)):
        raise SettingsError(f"set {variable(field)} or {name}, not both")
    try:
        keys = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}: cannot read {path}: {error}") from None
    if not keys.split():  # an empty secret must not open the door
        raise SettingsError(f"{name}: {path} holds no key")
    return keys


def _complaints(error: ValidationError, flags: Mapping[str, str]) -> list[str]:
    """Say which variable or flag is wrong and why, without the value: it may be a secret."""
    return [
        _complaint(item["loc"], item["msg"], flags) for item in error.errors(include_input=False)
    ]


def _complaint(location: tuple[int | str, ...], message: str, flags: Mapping[str, str]) -> str:
    names = [_as_given(str(part), flags) for part in location[:1]]
    return ": ".join([*names, message.removeprefix("Value error, ")])


def _as_given(field: str, flags: Mapping[str, str]) -> str:
    return f"--{field.replace('_', '-')}" if field in flags else variable(field)
