"""Where the shipped checkpoint lies; for programs that do without `app`."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]
NAME = "everyday-efficientnet-lite1"


def newest(store: Path) -> Path:
    """Give the version with the highest number in ``<store>/<name>``.

    Raises:
        FileNotFoundError: no checkpoint lies there.
    """
    versions = [path for path in (store / NAME).glob("*") if path.name.isdecimal()]
    if not versions:
        raise FileNotFoundError(f"no checkpoint {NAME}/<number> in {store}")
    return max(versions, key=lambda path: int(path.name))


SHIPPED = newest(PROJECT_ROOT / "model_store")
