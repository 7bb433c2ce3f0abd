"""What a dialect is: routes of its own, and its own way to say what went wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.routing import BaseRoute

from app.settings import DialectName
from app.web.routes import Direct

Problem = Mapping[str, Any]
"""The members of a problem, as `app.web.problems.describe` gives them."""


@dataclass(frozen=True)
class Dialect:
    """One foreign API.

    Attributes:
        name: As in CAPTION_DIALECTS.
        router: Its routes.
        prefixes: How the paths begin on which errors are told in its shape.
        error: Problem -> the members of its error.
    """

    name: DialectName
    router: APIRouter
    prefixes: tuple[str, ...]
    error: Callable[[Problem], Mapping[str, Any]]

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Give its routes, for the application."""
        return self.router.routes


def router() -> APIRouter:
    """Give a router whose functions take a request and give a response.

    Its routes stay out of our OpenAPI: who asks them has the description of another service.
    """
    return APIRouter(route_class=Direct, include_in_schema=False)


def error_text(problem: Problem) -> str:
    """Say in one line what went wrong, and of which value."""
    wrong = "; ".join(f"{each['field']}: {each['message']}" for each in problem.get("errors", ()))
    detail: str = wrong or problem["detail"]
    return f"{problem['title']}: {detail}"
