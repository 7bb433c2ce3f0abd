"""The client of the caption service: photos in, sentences out.

from caption_client import Client

with Client("http://localhost:8000") as client:
print(client.caption("photo.jpg").text)
"""

from caption_client.async_client import AsyncClient
from caption_client.client import Client
from caption_client.errors import CaptionError, DeadlinePassed, Refused, Unreachable
from caption_client.exchange import Options
from caption_client.images import IMAGE_SUFFIXES, images_in
from caption_client.models import Candidate, Caption, Image, Result, Word

__all__ = [
    "IMAGE_SUFFIXES",
    "AsyncClient",
    "Candidate",
    "Caption",
    "CaptionError",
    "Client",
    "DeadlinePassed",
    "Image",
    "Options",
    "Refused",
    "Result",
    "Unreachable",
    "Word",
    "images_in",
]
