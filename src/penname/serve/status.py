"""Whether the server is well, and what it has done: `/health` and `/metrics`."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from penname import __version__
from penname.serve.common import BackgroundOf, MetricsOf, ServiceCaller, errors

router = APIRouter(tags=["status"])


class Health(BaseModel):
    """The server is up."""

    status: Literal["ok"] = "ok"
    version: str


@router.get("/health", summary="Whether the server is up")
def health() -> Health:
    """Needs no key."""
    return Health(version=__version__)


@router.get(
    "/metrics",
    summary="What the server has counted",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(403)},
)
def metrics(caller: ServiceCaller, counted: MetricsOf, background: BackgroundOf) -> Response:
    """In Prometheus's text format. Needs a service key."""
    del caller
    return Response(counted.text(background.waiting), media_type=CONTENT_TYPE_LATEST)
