"""A directory of the model store <-> what lies in it. Knows no torch.

manifest.json         what the network is, where it comes from, sha256 of every other file
weights.safetensors   matrices in half precision, vectors in single; never a pickle
graphs/*.xml          how to compute with them without torch, see `graphs`
vocabulary.json       the words, in order of their ids
confidence.safetensors how far captions can be trusted, see `confidence`; not every one has it
golden/image.png      an image drawn by ourselves ...
golden/caption.json   ... and what the network must say about it
CARD.md               data, recipe, scores, limits, licences
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Self

from pydantic import ValidationError

from app.captioner import confidence, documents, graphs, tensors
from app.captioner.confidence import ConfidenceModel
from app.captioner.directory import Directory
from app.captioner.errors import CheckpointError
from app.captioner.manifest import FORMAT_VERSION, WEIGHTS, Golden, Manifest
from app.captioner.tokenisers import tokeniser
from app.captioner.vocabulary import Sentences, Vocabulary

MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
GOLDEN_IMAGE = "golden/image.png"
GOLDEN_CAPTION = "golden/caption.json"
CARD = "CARD.md"
_NEEDED = (WEIGHTS, VOCABULARY, graphs.ENCODE, graphs.STEP)
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}

_MANIFEST_BYTES, _MANIFEST_VALUES = 4 * 2**20, 2**18  # thousands of epochs of history
_MOST_BYTES: Final = {
    VOCABULARY: 32 * 2**20,
    GOLDEN_CAPTION: 64 * 2**10,
    WEIGHTS: tensors.MOST_BYTES,
    confidence.FILE: confidence.MOST_BYTES,
}
_OTHER_BYTES = 16 * 2**20  # card, golden image, graphs and what else a manifest lists
_VALUES_A_WORD = 3  # itself, and perhaps how it is written
_MANY_VALUES = 100  # of a golden caption, and of a vocabulary beside its words


class GoldenSample(NamedTuple):
    """The golden caption and the file it is said of, as the manifest vouches for both."""

    image: bytes
    said: Golden


class Checkpoint(NamedTuple):
    """A loaded directory, verified.

    Attributes:
        manifest: what the network is.
        vocabulary: its words.
        weights: the bytes of ``weights.safetensors``.
        graphs: the text of every graph by its name, see `graphs.NAMES`.
        golden: a run's own checkpoint has none; to publish one is to give it one.
        confidence: says how far captions can be trusted; not every checkpoint has it.
    """

    manifest: Manifest
    vocabulary: Vocabulary
    weights: bytes
    graphs: Mapping[str, bytes]
    golden: GoldenSample | None = None
    confidence: ConfidenceModel | None = None

    def with_manifest(self, manifest: Manifest) -> Self:
        """Give the same network under another manifest: another search, for example."""
        return self._replace(manifest=manifest)


# --- writing ------------------------------------------------------------------------------------


def write(
    directory: Path,
    manifest: Manifest,
    vocabulary: Vocabulary,
    files: Mapping[str, bytes],
) -> Manifest:
    """Write an immutable directory and return the manifest with its hashes.

    Args:
        directory: must not exist yet.
        manifest: ``files`` in it is computed here, ``tokeniser`` is the vocabulary's.
        vocabulary: the words.
        files: weights, graphs, golden sample and card, by their names in the directory.

    Raises:
        CheckpointError: the directory exists; a published checkpoint never changes.
    """
    contents = {**files, VOCABULARY: _json(_named(vocabulary))}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    about = {"files": hashes, "tokeniser": vocabulary.tokeniser}
    manifest = manifest.model_copy(update=about)
    contents[MANIFEST] = _json(manifest.model_dump(mode="json"))
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        refuse_existing(directory)
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return manifest


def refuse_existing(directory: Path) -> NoReturn:
    """Say that a published checkpoint never changes.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(f"{directory} exists: publish under a new version") from None


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# --- loading ------------------------------------------------------------------------------------


def load(directory: Path) -> Checkpoint:
    """Read a directory and verify all of it: hashes, words, numbers, graphs and bounds.

    Nothing is read twice, and nothing that the manifest does not vouch for.

    Raises:
        CheckpointError: what was expected, what came, what to do.
    """
    with _opened(directory) as files:
        manifest = _manifest(files)
        _refuse_pickles(files)
        _refuse_unlisted(files, manifest)
        contents = {
            name: _verified(files, name, sha256, _MOST_BYTES.get(name, _OTHER_BYTES))
            for name, sha256 in manifest.files.items()
        }
        vocabulary = _vocabulary(files, contents[VOCABULARY], manifest)
        _check_weights(files, contents[WEIGHTS])
        return Checkpoint(
            manifest,
            vocabulary,
            contents[WEIGHTS],
            _graphs(files, contents),
            _golden(files, contents, vocabulary),
            _confidence(files, contents, len(vocabulary)),
        )


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` alone.

    Raises:
        CheckpointError: it is missing, not ours, or newer than this program.
    """
    with _opened(directory) as files:
        return _manifest(files)


def _opened(directory: Path) -> Directory:
    try:
        files = Directory(directory)
    except OSError:
        raise _no_manifest(directory) from None
    if not files.has(MANIFEST):
        files.close()
        raise _no_manifest(directory)
    return files


def _no_manifest(directory: Path) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {directory}: no {MANIFEST} there: name a directory <name>/<version> of "
        "model_store"
    )


def _manifest(files: Directory) -> Manifest:
    content = files.read(MANIFEST, most_bytes=_MANIFEST_BYTES)
    try:
        fields = documents.parse(content, most_values=_MANIFEST_VALUES)
        version = fields.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            files.refuse(f"format {version} is newer than {FORMAT_VERSION}: update the service")
        if version == 1:
            files.refuse(
                "format 1 was written before version 0.2.0, convert it: "
                f"python -m trainer convert {files.path} --version NEW"
            )
        manifest = Manifest.model_validate(fields)
    except (ValueError, AttributeError) as error:
        files.refuse(f"{MANIFEST} is not a manifest: {_told(error)}")
    try:
        tokeniser(manifest.tokeniser)
    except ValueError as error:
        files.refuse(str(error))
    return manifest


def _refuse_pickles(files: Directory) -> None:
    pickles = sorted(name for name in files.names() if Path(name).suffix.lower() in _PICKLES)
    if pickles:
        files.refuse(f"pickle files are never loaded, remove {', '.join(pickles)}")


def _refuse_unlisted(files: Directory, manifest: Manifest) -> None:
    """Refuse what nobody vouches for: weights and words always, a golden sample that is there."""
    always = (*_NEEDED, graphs.READ) if manifest.architecture.frames else _NEEDED
    for name in (*always, GOLDEN_IMAGE, GOLDEN_CAPTION, confidence.FILE):
        golden = name != confidence.FILE and _has_golden(manifest.files)
        needed = name in always or files.has(name) or golden
        if needed and name not in manifest.files:
            files.refuse(f"{MANIFEST} does not list {name}")


def _has_golden(names: Mapping[str, object]) -> bool:
    return GOLDEN_IMAGE in names or GOLDEN_CAPTION in names


def _verified(files: Directory, name: str, sha256: str, most_bytes: int) -> bytes:
    content = files.read(name, most_bytes=most_bytes)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        files.refuse(
            f"{name} has sha256 {found[:12]}, {MANIFEST} expects {sha256[:12]}: copy it again"
        )
    return content


def _named(vocabulary: Vocabulary) -> dict[str, Any]:
    """Give what ``vocabulary.json`` says."""
    written = {"sentences": asdict(vocabulary.sentences)} if vocabulary.sentences else {}
    return {"words": vocabulary.words, **written}


def _vocabulary(files: Directory, content: bytes, manifest: Manifest) -> Vocabulary:
    words = manifest.architecture.words
    try:
        fields = documents.parse(content, most_values=_VALUES_A_WORD * words + _MANY_VALUES)
        named, written = fields["words"], fields.get("sentences")
        if not isinstance(named, list):
            raise TypeError("its words are no list")  # noqa: TRY301
        sentences = None if written is None else _sentences(written)
        vocabulary = Vocabulary(tuple(named), manifest.tokeniser, sentences)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        files.refuse(f"{VOCABULARY} is not a vocabulary: {_told(error)}")
    if len(vocabulary) != words:
        files.refuse(
            f"{WEIGHTS} expects {words} words, {VOCABULARY} has {len(vocabulary)}: "
            "restore the pair or retrain"
        )
    return vocabulary


def _sentences(fields: Any) -> Sentences:
    match fields:
        case {"capital": bool(capital), "end": str(end), "forms": dict(forms)}:
            return Sentences(capital, end, forms)
    raise ValueError("its sentences lack capital, end or forms")


def _golden(
    files: Directory, contents: Mapping[str, bytes], vocabulary: Vocabulary
) -> GoldenSample | None:
    if not _has_golden(contents):
        return None
    try:
        fields = documents.parse(contents[GOLDEN_CAPTION], most_values=_MANY_VALUES)
        golden = Golden.model_validate(fields)
        for said in (golden, golden.int8):
            if said and vocabulary.text(vocabulary.tokenise(said.caption)) != said.caption:
                raise ValueError("it is not written as captions here are")  # noqa: TRY301
        return GoldenSample(contents[GOLDEN_IMAGE], golden)
    except ValueError as error:
        files.refuse(f"{GOLDEN_CAPTION} is no golden caption: {_told(error)}")


def _confidence(
    files: Directory, contents: Mapping[str, bytes], words: int
) -> ConfidenceModel | None:
    if confidence.FILE not in contents:
        return None
    try:
        return ConfidenceModel.read(contents[confidence.FILE], words)
    except ValueError as error:
        files.refuse(f"{confidence.FILE}: {error}")


def _check_weights(files: Directory, content: bytes) -> None:
    try:
        places = tensors.layout(content)
        tensors.check_finite(content, places)
    except ValueError as error:
        files.refuse(f"{WEIGHTS}: {error}")


def _graphs(files: Directory, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    found = {name: contents[name] for name in graphs.NAMES if name in contents}
    for name, text in found.items():
        try:
            graphs.check(text, len(contents[WEIGHTS]))
        except ValueError as error:
            files.refuse(f"{name}: {error}")
    return found


def _told(error: Exception) -> str:
    """Say what is wrong and where, in one line; of what came no more than a glimpse."""
    if not isinstance(error, ValidationError):
        return str(error)
    wrong = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step)[:100] for step in wrong["loc"])
    return f"{place}: {wrong['msg']}" if place else wrong["msg"]
