"""The client of the caption service: photos and clips in, sentences out.

from caption_client import Client

with Client("http://localhost:8000") as client:
print(client.caption("photo.jpg").text)
"""

from caption_client.async_client import AsyncClient
from caption_client.client import Client
from caption_client.errors import CaptionError, DeadlinePassed, Refused, Unreachable
from caption_client.exchange import ClipOptions, Options, TrackFormat
from caption_client.images import IMAGE_SUFFIXES, images_in
from caption_client.models import Candidate, Caption, Clip, File, Image, Result, Shot, Word

__all__ = [
    "IMAGE_SUFFIXES",
    "AsyncClient",
    "Candidate",
    "Caption",
    "CaptionError",
    "Client",
    "Clip",
    "ClipOptions",
    "DeadlinePassed",
    "File",
    "Image",
    "Options",
    "Refused",
    "Result",
    "Shot",
    "TrackFormat",
    "Unreachable",
    "Word",
    "images_in",
]
