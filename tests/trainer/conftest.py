import pytest

from support.runs import RECIPE
from support.tiny import data_directory


@pytest.fixture
def place(tmp_path):
    """A directory with tiny data and a tiny recipe."""
    data_directory(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path
