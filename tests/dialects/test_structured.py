"""A caption in the shape of a schema."""

import pytest

from app.captioner.captions import Caption, Word
from app.dialects import structured
from app.dialects.structured import fill, subject_of
from app.web.problems import InvalidRequest

WORDS = tuple(Word(text, -0.5) for text in ("a", "dog", "runs", "on", "the", "grass"))
SUBJECT = subject_of([Caption("a dog runs on the grass", -1.0, -0.5, WORDS)])
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "filled"),
    [
        (TEXT, "a dog runs on the grass"),
        ({}, "a dog runs on the grass"),
        ({"type": ["null", "string"]}, "a dog runs on the grass"),
        ({"anyOf": [{"type": "null"}, TEXT]}, "a dog runs on the grass"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ({"const": "photo"}, "photo"),
        ({"type": "array", "items": TEXT}, ["dog", "runs", "grass"]),
        ({"properties": {"a": TEXT}}, {"a": "a dog runs on the grass"}),
        ({"properties": {"confidence": {"type": "number"}}}, {"confidence": 0.3679}),
        ({"properties": {"count": {"type": "integer"}, "a": {"const": 1}}}, {"a": 1}),
        (
            {"$ref": "#/$defs/one", "$defs": {"one": {"properties": {"a": TEXT}}}},
            {"a": "a dog runs on the grass"},
        ),
    ],
)
def test_what_a_caption_knows_is_filled_in(schema, filled):
    assert fill(schema, SUBJECT) == filled


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "integer"}, "schema"),
        ({"properties": {"n": {"type": "integer"}}, "required": ["n"]}, "schema.n"),
        ({"properties": {"n": {"type": "number"}}, "required": ["n"]}, "schema.n"),
        ({"properties": {"n": {"enum": ["a", "b"]}}, "required": ["n"]}, "schema.n"),
        ({"type": "array", "items": {"type": "boolean"}}, "schema.0"),
        ({"anyOf": []}, "schema"),
        ({"anyOf": [{"type": "boolean"}]}, "schema"),
        ({"$ref": "#/$defs/none"}, "schema"),
        ({"properties": []}, "schema"),
        ({"type": "array", "items": 7}, "schema.0"),
    ],
)
def test_what_it_does_not_know_is_told(schema, place):
    with pytest.raises(InvalidRequest) as told:
        fill(schema, SUBJECT)
    assert told.value.errors[0]["field"] == place


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {name: {"$ref": "#"} for name in "abcdefgh"}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"$ref": "#"}] * 8},
        {"properties": {str(n): TEXT for n in range(2000)}},
    ],
)
def test_a_schema_without_an_end_is_refused(schema):
    with pytest.raises(InvalidRequest):
        fill(schema, SUBJECT)


def test_without_an_image_strings_and_lists_are_empty():
    schema = {"properties": {"a": TEXT, "tags": {"type": "array", "items": TEXT}}}
    assert fill(schema, subject_of([])) == {"a": "", "tags": []}


def test_a_word_that_several_captions_have_is_one_tag():
    captions = [Caption(text, -1.0, -1.0, (Word(text, -1.0),)) for text in ("dog", "dog", "cat")]
    assert structured.without_schema(subject_of(captions))["tags"] == ["dog", "cat"]
