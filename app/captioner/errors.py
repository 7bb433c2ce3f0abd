"""What can go wrong in the workshop.

CaptionerError
├── ImageError            one upload is at fault; ``code`` is stable and fit for clients
│   ├── UnsupportedImage  the bytes are of a format we do not read
│   ├── ImageTooLarge     the header declares more pixels than allowed
│   └── UndecodableImage  the format is right, the content is broken
├── CheckpointError       a directory of the model store cannot be trusted
├── OutOfMemory           the batch does not fit into the device; a smaller one may
└── DeviceFault           the device has failed for good; ``code`` is stable, a reason of probes
    └── LaneDied          the process of a lane has ended
"""


class CaptionerError(Exception):
    """Anything the workshop raises on purpose."""


class ImageError(CaptionerError):
    """One upload is at fault. The message is ours, fixed, and safe to show to the client."""

    code = "image_error"


class UnsupportedImage(ImageError):
    """The bytes are not a JPEG, PNG or WebP image."""

    code = "unsupported_image"


class ImageTooLarge(ImageError):
    """The header declares more pixels than allowed."""

    code = "too_many_pixels"


class UndecodableImage(ImageError):
    """The bytes start like an image and do not hold one."""

    code = "undecodable_image"


class CheckpointError(CaptionerError):
    """A checkpoint directory is missing, damaged, or not what its manifest says."""


class OutOfMemory(CaptionerError):
    """The batch does not fit into the device; a smaller one may."""


class DeviceFault(CaptionerError):
    """The device has failed for good; only a new process can use it."""

    code = "device_fault"


class LaneDied(DeviceFault):
    """The process of a lane has ended; whatever it was at is lost."""

    code = "lane_died"
