from pathlib import Path

import pytest

from trainer.errors import RecipeError
from trainer.training.recipe import read_recipe

SHIPPED = sorted((Path(__file__).parents[3] / "trainer/recipes").glob("*.toml"))
TINY = """
name = "tiny"
[network]
encoder = "mobilenet_v2"
[image]
size_px = 64
fit = "squeeze"
[[stages]]
kind = "cached"
epochs = 1
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path):
    assert read_recipe(path).name


def test_changes_are_applied_on_top(path):
    changed = read_recipe(path, changes=["stages.0.epochs=7", "seed=3", 'network.decoder="merge"'])
    assert changed.stages[0].epochs == 7
    assert changed.seed == 3
    assert changed.network.decoder == "merge"


@pytest.mark.parametrize("name", ["global_feature", "whole_image"])
def test_an_option_is_read_under_the_name_it_had_before_too(path, name):
    changes = ['network.decoder="attention"', f"network.{name}=true"]
    recipe = read_recipe(path, changes=changes)
    assert recipe.network.global_feature
    assert recipe.network.architecture(words=9).global_feature
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("value", ["resnet50", '"resnet50"', " resnet50 "])
def test_a_text_needs_no_quotes_which_a_shell_takes_away(path, value):
    assert read_recipe(path, changes=[f"network.encoder={value}"]).network.encoder == "resnet50"


def test_the_old_name_of_min_count_is_read(path):
    assert read_recipe(path, changes=["vocabulary.at_least=3"]).vocabulary.min_count == 3
    path.write_text(path.read_text() + "[vocabulary]\nat_least = 4\n")
    assert read_recipe(path).vocabulary.min_count == 4


def test_a_kind_brings_its_own_defaults(path):
    change = 'stages=[{kind="self_critical", epochs=1, label_smoothing=0.2}]'
    stage = read_recipe(path, changes=[change]).stages[0]
    assert (stage.learning_rate, stage.schedule, stage.label_smoothing) == (5e-5, "constant", 0.2)
    assert type(stage).model_validate(stage.model_dump(mode="json")) == stage


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("colour=1", "colour is no key of a recipe: known: name, seed"),
        ("stages.0.epoch=1", r"did you mean stages\.0\.epochs$"),
        ("stages.0.epochs=0", r"stages\.0\.epochs: .*greater than or equal to 1"),
        ('network.encoder="alexnet"', "encoder 'alexnet' is none of vgg16"),
        ('stages.0.kind="fine_tune"', "fine_tune needs encoder_learning_rate"),
        ('stages=[{kind="self_critical", epochs=1, unfrozen_blocks=2}]', "together, or neither"),
        ('stages=[{kind="average", epochs=2}]', "average takes one look"),
        ("stages.0.samples_per_image=3", "samples_per_image belongs to self_critical"),
        ("stages.0.averaged_epochs=2", "averaged_epochs belongs to average"),
        ("stages.0.unfrozen_blocks=2", "cached trains no encoder"),
        ("stages.9.epochs=1", "leads nowhere"),
        ("seed", "expected key=value"),
        ("seed=", "seed: .*valid integer"),
        ("stages.0.lr=1", r"did you mean stages\.0\.learning_rate$"),
        ("stages.0.batch_size=1", r"did you mean stages\.0\.batch_images$"),
        ("network.hidden_size=1", r"did you mean network\.hidden_width$"),
        ("vocabulary.tokenizer=x", r"did you mean vocabulary\.tokeniser$"),
        ("vocabulary.tokeniser=ptb", "lower-alphanumeric"),
    ],
)
def test_a_wrong_change_is_refused_by_name(path, change, reason):
    with pytest.raises(RecipeError, match=reason):
        read_recipe(path, changes=[change])


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("= 1")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "broken.toml")
