"""What the OpenAPI document says is what the service does: schemathesis sends what it allows, and more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve_app import Service, listening, serving

QUICKLY = settings(
    max_examples=6,  # of each route
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("schema"), max_tokens=16) as made:
        yield made


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with listening(service.app) as made:
        yield made


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_route_does_what_the_document_says(
    service: Service, address: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(service.app.openapi())
    headers = {"Authorization": f"Bearer {service.keys['service']}"}

    def answered(case: Any) -> None:
        # A name out of thin air is a 404; half of the time it is that of a user who is there.
        named = (case.path_parameters or {}).get("user")
        if named is not None and len(str(named)) % 2 == 0 and case.method != "DELETE":
            case.path_parameters["user"] = "ann"
        response = case.call(base_url=address, headers=headers)
        case.validate_response(response, checks=CHECKS)

    done = 0
    for found in schema.get_all_operations():
        try:
            cases = found.ok().as_strategy(generation_mode=mode)
            given(case=cases)(QUICKLY(lambda case: answered(case)))()
            done += 1
        except Unsatisfiable:  # nothing of it can be wrong
            continue
    assert done >= 20


def test_the_document_says_who_needs_a_key(service: Service) -> None:
    open_routes = {"/health"}
    for path, item in service.app.openapi()["paths"].items():
        for operation in item.values():
            assert bool(operation.get("security")) == (path not in open_routes), path
            assert ("401" in operation["responses"]) == (path not in open_routes), path
            assert "422" not in operation["responses"], path


def test_the_document_is_there_without_a_key(service: Service) -> None:
    assert service(None, "GET", "/openapi.json").json()["info"]["title"] == "penname"
