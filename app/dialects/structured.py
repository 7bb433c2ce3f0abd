"""A caption in the shape of a JSON schema, for programs that ask for one.

Only what a caption knows is filled in: a string is the sentence, a list has an entry for each of
its words that say something, and a number that is called a confidence is the probability.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.web.problems import InvalidRequest

if TYPE_CHECKING:
    from app.captioner.captions import Caption

# Words that say how others belong together; what is left of a caption can be its tags.
_FUNCTION_WORDS = frozenset(
    """
    a an the some another other each
    and or but while as that which who with without
    is are was were be being been has have having do does
    of in on at to by for from into onto off out over under up down through across along around
    near behind beside between next front top back against above below towards toward inside outside
    his her its their he she it they him them himself herself itself one there this these those
    """.split()  # noqa: SIM905 - a column of sixty would say less
)
_CONFIDENCES = frozenset({"confidence", "probability", "score", "topicality", "certainty"})
_MOST_NODES = 1000
_MOST_DEPTH = 16

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is put into a schema: a sentence or a word.

    Attributes:
        text: The words.
        probability: 0..1.
        parts: What a list has entries for.
    """

    text: str
    probability: float
    parts: "tuple[Subject, ...]"


def subject_of(captions: "Sequence[Caption]") -> Subject:
    """Give the captions of one or more images as one subject; of none, one without words."""
    words = {
        word.text: Subject(word.text, _probability(word.log_prob), ())
        for caption in captions
        for word in caption.words
        if word.text not in _FUNCTION_WORDS
    }
    text = "\n".join(caption.text for caption in captions)
    log_prob = sum(caption.log_prob for caption in captions)
    return Subject(text, _probability(log_prob) if captions else 0.0, tuple(words.values()))


def without_schema(subject: Subject) -> dict[str, Any]:
    """Give JSON for who asks for JSON and does not say which."""
    words = [(part.text, round(part.probability, 4)) for part in subject.parts]
    return {
        "caption": subject.text,
        "tags": [text for text, _ in words],
        "labels": [{"name": text, "confidence": confidence} for text, confidence in words],
    }


def fill(schema: Schema, subject: Subject) -> Any:
    """Give JSON that the schema allows.

    Raises:
        InvalidRequest: It requires something that no caption tells, such as a count.
    """
    return _Filling(schema).fill(schema, subject, ("schema",))


def _probability(log_prob: float) -> float:
    return math.exp(min(log_prob, 0.0))


@dataclass
class _Filling:
    """The filling of one schema; counts its nodes, for references may repeat them without end."""

    root: Schema
    nodes: int = field(default=0)
    depth: int = field(default=0)

    def fill(self, schema: Any, subject: Subject, place: tuple[str, ...]) -> Any:
        self.nodes += 1
        self.depth += 1
        try:
            if self.nodes > _MOST_NODES or self.depth > _MOST_DEPTH:
                message = f"Input should be a schema of at most {_MOST_NODES} nodes"
                raise _unfillable(place[:1], message)
            return self._of_schema(self._resolved(schema, place), subject, place)
        finally:
            self.depth -= 1

    def _of_schema(self, schema: Schema, subject: Subject, place: tuple[str, ...]) -> Any:
        if "const" in schema:
            return schema["const"]
        for choices in (schema.get("anyOf"), schema.get("oneOf")):
            if isinstance(choices, list):
                return self._first(choices, subject, place)
        return self._of_type(_type(schema), schema, subject, place)

    def _of_type(self, kind: str, schema: Schema, subject: Subject, place: tuple[str, ...]) -> Any:
        if kind == "object":
            return self._object(schema, subject, place)
        if kind == "array":
            items, parts = schema.get("items", {}), subject.parts or (subject,)
            return [self.fill(items, part, (*place, "0")) for part in parts if part.text]
        if kind == "string" and not {"enum", "format", "pattern"} & set(schema):
            return subject.text
        if kind == "number" and place[-1] in _CONFIDENCES:
            return round(subject.probability, 4)
        if kind == "null":
            return None
        message = "A caption fills strings, lists and confidences; make others optional"
        raise _unfillable(place, message)

    def _object(self, schema: Schema, subject: Subject, place: tuple[str, ...]) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", ())
        if not isinstance(properties, dict):
            raise _unfillable(place, "Input should be a schema of JSON")
        filled = {}
        for name, each in properties.items():
            try:
                filled[name] = self.fill(each, subject, (*place, name))
            except InvalidRequest:
                if name in required or self.nodes > _MOST_NODES:
                    raise
        return filled

    def _first(self, choices: Sequence[Any], subject: Subject, place: tuple[str, ...]) -> Any:
        refused = _unfillable(place, "Input should have a choice that a caption can fill")
        for choice in sorted(choices, key=lambda one: one == {"type": "null"}):
            try:
                return self.fill(choice, subject, place)
            except InvalidRequest as error:
                refused = error
        raise refused

    def _resolved(self, schema: Any, place: tuple[str, ...]) -> Schema:
        """Follow a reference within the schema, once: each hop is a node."""
        if schema is True:
            return {"type": "string"}
        if not isinstance(schema, dict):
            raise _unfillable(place, "Input should be a schema of JSON")
        if "$ref" not in schema:
            return schema
        found: Any = self.root
        for step in filter(None, str(schema["$ref"]).removeprefix("#").split("/")):
            found = found.get(step) if isinstance(found, dict) else None
        return self._checked(found, place)

    def _checked(self, found: Any, place: tuple[str, ...]) -> Schema:
        if not isinstance(found, dict) or "$ref" in found:
            raise _unfillable(place, "Input should refer to a schema in itself")
        return found


def _type(schema: Schema) -> str:
    """Name the type, the first one that is not null of several."""
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def _unfillable(place: Sequence[str], message: str) -> InvalidRequest:
    return InvalidRequest([{"loc": place, "msg": message}])
