"""What can go wrong in the captioner.

CaptionerError
├── ImageError            one upload is at fault; ``code`` is stable and fit for clients
│   ├── UnsupportedImage  the bytes are of a format we do not read
│   ├── ImageTooLarge     the header declares more pixels than allowed
│   ├── ClipTooLong       a clip lasts longer than it may
│   ├── TooCostly         decoding it takes more time or memory than it may
│   └── UndecodableImage  the format is right, the content is broken
├── NoDecoder             there is no process to decode in now
├── CheckpointError       a directory of the model store cannot be trusted
├── OutOfMemory           the batch does not fit into the device; a smaller one may
└── DeviceFault           the device has failed for good; ``code`` is stable, a reason of probes
"""

FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
"""What is read, as users are told."""
_MOST_CHARACTERS = 1000


class CaptionerError(Exception):
    """Anything the captioner raises on purpose."""


class ImageError(CaptionerError):
    """One upload is at fault. The message is ours, fixed, and safe to show to the client.

    Args:
        message: what is wrong, and what would have worked.
        limit: the number that was passed, where there is one.
    """

    code = "image_error"

    def __init__(self, message: str = "", limit: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class UnsupportedImage(ImageError):
    """The bytes are of a format that is not read."""

    code = "unsupported_image"


class ImageTooLarge(ImageError):
    """The header declares more pixels than allowed."""

    code = "too_many_pixels"


class ClipTooLong(ImageError):
    """A clip lasts longer than it may."""

    code = "clip_too_long"


class TooCostly(ImageError):
    """Decoding takes more time or memory than it may."""

    code = "too_costly"


class UndecodableImage(ImageError):
    """The bytes start like an image and do not hold one."""

    code = "undecodable_image"


class NoDecoder(CaptionerError):
    """There is no process to decode in, through no fault of the image; soon there may be one."""


class CheckpointError(CaptionerError):
    """A checkpoint directory is missing, damaged, or not what its manifest says.

    The message may quote a stranger's file: on its way into logs and terminals it is one line of
    printable characters, and cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class OutOfMemory(CaptionerError):
    """The batch does not fit into the device; a smaller one may."""


class DeviceFault(CaptionerError):
    """The device has failed for good; only a new process can use it."""

    code = "device_fault"


def _printable(text: str) -> str:
    cut = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " ..."
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut)
