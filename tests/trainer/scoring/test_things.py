"""What counts as right: the table of things, the evidence for each, genders."""

import pytest

from trainer.scoring.faithfulness import faithfulness
from trainer.scoring.things import gender_error, things


@pytest.mark.parametrize(
    ("caption", "references", "wrong"),
    [
        ("a dog runs on the grass", ["A puppy is running in a field ."], []),
        ("a dog runs on the grass", ["A cat sleeps on a sofa ."], ["dog", "grass"]),
        ("two dogs play", ["A couple of hounds ."], []),
        ("three dogs play", ["Two dogs ."], ["three"]),
        ("a person jumps", ["A skateboarder jumps ."], []),
        ("a skateboarder jumps", ["A person jumps ."], ["skateboarder"]),
        ("a skier on a hill", ["Someone skiing down a mountain ."], []),
        ("a man rides a bike", ["A man rides a motorcycle ."], []),
        ("a man rides a motorcycle", ["A man rides a bike ."], ["motorcycle"]),
        ("a man is running", ["A guy sits ."], []),
        ("women talk", ["Ladies talk ."], []),
        ("a woman talks", ["A person talks ."], ["woman"]),
        ("a bus on a street", ["Buses on a road ."], []),
    ],
)
def test_a_caption_is_held_against_what_people_wrote(caption, references, wrong):
    assert things().wrong(caption, references) == wrong
    assert things().is_right(caption, references) == (not wrong)


def test_a_caption_that_names_nothing_is_not_right():
    assert things().named("it is very nice") == []
    assert not things().is_right("it is very nice", ["It is very nice ."])


def test_words_that_only_bear_out_are_no_things_themselves():
    assert "riding" not in things().borne_out_by
    assert things().wrong("a rider on a hill", ["A man riding up a hill ."]) == []


def test_every_parent_is_a_group_and_every_group_has_its_own_words():
    table = things()
    assert len(table.group_of) > 500
    assert {"dog", "puppy", "puppies", "dogs"} <= table.borne_out_by["animal"]
    assert all(word in table.borne_out_by[word] for word in table.group_of)


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a man sits", ["A woman sits .", "A lady on a bench ."], True),
        ("a man sits", ["A man sits .", "A person ."], False),
        ("a man sits", ["A man .", "A woman ."], None),
        ("a person sits", ["A man ."], None),
        ("a man and a woman", ["A man ."], None),
    ],
)
def test_gender_is_judged_where_references_agree(caption, references, expected):
    assert gender_error(caption, references) is expected


def test_faithfulness_counts_each_kind_of_error():
    references = {name: ["A woman walks a dog ."] for name in "abcd"}
    found = faithfulness(
        {"a": "a woman with a dog", "b": "a man with a dog", "c": "a cat", "d": "two dogs"},
        references,
    )
    assert (found.right, found.hallucinating, found.wrong_number) == (0.25, 0.25, 0.25)
    assert (found.gender_said, found.gender_wrong) == (0.5, 0.5)
    assert found.gender_unsupported == 0.25
    assert "right captions 25.0%" in found.as_text()


def test_captions_in_another_language_are_not_judged():
    said = {"a": "ein hund läuft", "b": "ein ball", "c": "eine katze"}
    found = faithfulness(said, {name: ["Ein Hund ."] for name in said})
    assert "not judged" in found.as_text()
