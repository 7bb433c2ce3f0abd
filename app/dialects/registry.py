"""All dialects, by the names of CAPTION_DIALECTS."""

from collections.abc import Sequence

from app.dialects.dialect import Dialect
from app.dialects.hugging_face import HUGGING_FACE
from app.dialects.kserve import KSERVE
from app.dialects.max import MAX
from app.dialects.ollama import OLLAMA
from app.dialects.openai import OPENAI
from app.settings import DialectName

DIALECTS = {each.name: each for each in (OPENAI, OLLAMA, HUGGING_FACE, KSERVE, MAX)}


def chosen(names: Sequence[DialectName]) -> list[Dialect]:
    """Give the dialects that are switched on."""
    return [DIALECTS[name] for name in dict.fromkeys(names)]
