"""What openapi.yaml says of the data plane: every route that goes past the framework, and its parameters."""

from __future__ import annotations

from typing import Any, cast

import yaml
from starlette.routing import Route

from connector.dataplane.http import routes as http_routes
from connector.dataplane.http.request_context import Endpoint
from tests.support.openapi import DATA_PLANE

DESCRIBED = yaml.safe_load(DATA_PLANE.read_text())
METHODS = {"get", "post"}


def test_every_route_is_described_with_its_methods() -> None:
    routes = [cast(Route, one) for one in http_routes.routes(cast(Any, None), cast(Any, None), owner="north")]
    expected = {one.path.replace(":path", ""): set(cast(Endpoint, one.endpoint)._methods) for one in routes}
    assert {
        path: {name.upper() for name in METHODS & set(told)} for path, told in DESCRIBED["paths"].items()
    } == expected


def test_every_parameter_of_rows_is_described() -> None:
    assert {one["name"] for one in DESCRIBED["parameters"]} == set(http_routes._ROWS_PARAMETERS)
    assert DESCRIBED["paths"]["/data/v1"]["get"]["parameters"] == DESCRIBED["parameters"]
