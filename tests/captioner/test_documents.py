import json
import math

import pytest

from app.captioner import documents


def parse(text):
    return documents.parse(text.encode(), most_values=1000)


@pytest.mark.parametrize(
    "value", [{}, [], "é ж 犬", 0.5, -(2**63), True, None, {"a": [{"b": "line\n\ttab"}] * 3}]
)
def test_an_honest_document_comes_through_as_it_is(value):
    assert parse(json.dumps(value)) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"\xed\xa0\x80", b'"\x00"', b"1 2"])
def test_what_is_no_json_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        documents.parse(content, most_values=1000)


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [40, 900, 100_000])
def test_brackets_without_end_are_refused(bracket, depth):
    closing = "]" if bracket == "[" else "}"
    text = bracket * depth + "1" + closing * depth
    with pytest.raises(ValueError, match="at most 32 brackets"):
        documents.parse(text.encode(), most_values=10**6)


def test_values_are_counted_before_they_are_made(monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    for text in ("[" + "[]," * 1000 + "[]]", "[" + "1," * 1001 + "1]"):
        with pytest.raises(ValueError, match="at most 1000 values"):
            parse(text)


@pytest.mark.parametrize("text", ["9" * 5000, "9223372036854775808", "-9223372036854775809"])
def test_whole_numbers_have_64_bits(text):
    with pytest.raises(ValueError, match=r"digits|too large"):
        parse(f"[{text}]")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_no_json_holds_are_none(text):
    assert parse(f'{{"loss": {text}, "cider": 1e3}}') == {"loss": None, "cider": 1e3}
    assert math.isfinite(parse("1e308"))


@pytest.mark.parametrize("code", [0, 0x1B, 0x7F, 0x9B, 0x2028, 0x202E, 0x2066, 0xD800, 0xDFFF])
def test_characters_that_steer_a_terminal_or_are_halves_are_refused(code):
    for value in ([chr(code)], {"a" + chr(code): 1}, [[{"a": chr(code)}]]):
        with pytest.raises(ValueError, match="has no place in a text") as refusal:
            parse(json.dumps(value))
        assert str(refusal.value).isprintable()


def test_a_key_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="a key comes twice"):
        parse('{"a": 1, "a": 2}')
