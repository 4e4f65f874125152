"""The tables of types are what the official client's tables make, and nothing written by hand."""

from importlib.metadata import version
from pathlib import Path

import pytest

from services_app.spec import kinds, openapi, schema, wire
from tests.spec.make_schema import made

CLIENT = version("kubernetes")


@pytest.mark.skipif(
    CLIENT.split(".")[0] not in ("36", "37"), reason=f"client {CLIENT}: its API is not compared with 1.36"
)
def test_the_tables_are_those_of_the_official_client():
    assert Path(schema.__file__).with_name("schema.json").read_text().splitlines() == made().splitlines()


def test_a_pod_needs_its_containers_alone():
    assert [field.name for field in schema.fields("PodSpec").values() if field.required] == ["containers"]
    assert '"required":["containers"]' in openapi.v2_document().replace(" ", "")


def test_a_pod_without_overhead_is_stored_without_it():
    sent = b'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c"}]}}'
    assert "overhead" not in wire.decode(kinds.POD, sent, "application/json")["spec"]
