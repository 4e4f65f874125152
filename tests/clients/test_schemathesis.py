"""Requests grown from the OpenAPI documents that the server hands out: whatever is sent, it answers for it."""

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from services_app.lab.client import CORE, ApiClient
from services_app.local.supervisor import Stack
from services_app.spec import kinds
from tests.clients.samples import sample

Document = dict[str, Any]

NAMES = ["a", "b", "c", "10.96.200.9"]
SPACE = "grown"
FORMS = [
    "application/json",
    "application/yaml",
    "application/json;as=Table;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "application/vnd.kubernetes.protobuf",
    "text/html",
]
QUERIES: list[dict[str, str]] = [
    {"dryRun": "All"},
    {"fieldValidation": "Strict"},
    {"fieldManager": "grower", "force": "true"},
    {"fieldManager": "grower"},
    {"labelSelector": "a in (b,c),!d"},
    {"fieldSelector": "metadata.name=a"},
    {"limit": "1"},
    {"limit": "2", "resourceVersion": "1", "resourceVersionMatch": "Exact"},
    {"resourceVersion": "0", "watch": "true"},
    {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "watch": "true",
        "allowWatchBookmarks": "true",
    },
    {"gracePeriodSeconds": "0", "propagationPolicy": "Orphan"},
]
# Those of another kind of mistake are dear to make; most are bent by hand below.
MODES = [GenerationMode.POSITIVE] * 9 + [GenerationMode.NEGATIVE]
AHEAD = "ResourceVersionTooLarge"  # of a version that has not come yet, which Kubernetes, too, answers with 504


@dataclass
class Tally:
    """What was answered. failures: the requests that the server failed at."""

    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Grower:
    """A client that sends what its strategies make up."""

    def __init__(self, url: str, token: str, authority: str, version: int) -> None:
        self.url, self.tally = url, Tally()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = authority
        self.session.headers["Authorization"] = f"Bearer {token}"
        documents = [self.document(f"/openapi/v{version}")]
        if version == 3:
            documents = [self.document(entry["serverRelativeURL"]) for entry in documents[0]["paths"].values()]
        operations = [
            found.ok()
            for document in documents
            for found in schemathesis.openapi.from_dict(document).get_all_operations()
        ]
        self.cases = {
            mode: st.sampled_from(operations).flatmap(
                lambda operation, mode=mode: operation.as_strategy(generation_mode=mode)
            )
            for mode in GenerationMode
        }

    def document(self, path: str) -> Any:
        response = self.session.get(self.url + path, timeout=30)
        response.raise_for_status()
        return response.json()

    def send_one(self, data: st.DataObject) -> None:
        """One case, twice: as it was made up, and aimed at what is there."""
        case = data.draw(st.sampled_from(MODES).flatmap(lambda mode: self.cases[mode]))
        accept = data.draw(st.sampled_from([*FORMS, *FORMS[:1] * 6]))
        self.send(case, accept)
        self.aim(case, data)
        self.send(case, accept)

    def send(self, case: Case, accept: str) -> None:
        wanted = case.as_transport_kwargs(base_url=self.url)
        wanted["headers"] = {**(wanted.get("headers") or {}), "Accept": accept}
        # A watch is looked at and left.
        with self.session.request(**wanted, stream=True, timeout=30) as response:
            self.tally.answers[response.status_code] += 1
            if response.status_code < 500:
                return
            text = response.text
        if response.status_code == 504 and AHEAD in text:
            return
        self.tally.failures.append(f"{wanted} was answered {response.status_code} {text}")

    def aim(self, case: Case, data: st.DataObject) -> None:
        """Let most requests be about a few objects in one namespace, so that they meet, and are not all refused early."""
        name = data.draw(st.sampled_from(NAMES))
        for parameter, value in (("namespace", SPACE), ("name", name)):
            if parameter in (case.path_parameters or {}) and data.draw(st.integers(0, 9)):
                case.path_parameters[parameter] = value
        if data.draw(st.integers(0, 2)) == 0:
            case.query = data.draw(st.sampled_from(QUERIES)) | {"timeoutSeconds": "1"}
        if not isinstance(case.body, dict) or not data.draw(st.integers(0, 9)):
            return
        marks = case.operation.definition.raw.get("x-kubernetes-group-version-kind") or {}
        kind = next((k for k in kinds.KINDS if (k.group, k.kind) == (marks.get("group"), marks.get("kind"))), None)
        if kind in kinds.STORED and data.draw(st.booleans()):
            case.body = self.graft(sample(kind, name, SPACE), case.body, data)
        elif kind is not None:
            case.body |= {"apiVersion": kind.api_version, "kind": kind.kind}
        metadata = case.body.get("metadata")
        kept = metadata if isinstance(metadata, dict) and data.draw(st.booleans()) else {}
        case.body["metadata"] = {**kept, "name": name, "namespace": "", "resourceVersion": ""}

    def graft(self, valid: Document, grown: Document, data: st.DataObject) -> Document:
        """A valid object with one grown field in it, which may be anywhere in its first two levels."""
        fields = sorted(key for key in grown if key not in ("apiVersion", "kind"))
        if not fields:
            return valid
        key = data.draw(st.sampled_from(fields))
        if isinstance(grown[key], dict) and isinstance(valid.get(key), dict) and grown[key]:
            inner = data.draw(st.sampled_from(sorted(grown[key])))
            return {**valid, key: {**valid[key], inner: grown[key][inner]}}
        return {**valid, key: grown[key]}


def grow(url: str, token: str, authority: str, count: int, seed: int, version: int = 3) -> Tally:
    """Send so many requests, two for each case. Nothing is cut down when one fails: the server's state is part of it."""
    grower = Grower(url, token, authority, version)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=(count + 1) // 2,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def send(data: st.DataObject) -> None:
        grower.send_one(data)

    send()
    return grower.tally


@pytest.mark.slow
@pytest.mark.parametrize("version, count", [(3, 500), (2, 50)])
def test_no_request_is_answered_by_a_failure(stack: Stack, api: ApiClient, version: int, count: int) -> None:
    api.ensure_namespace(SPACE)
    tally = grow(stack.url, stack.token, str(stack.ca), count, seed=36, version=version)
    assert tally.failures == []
    assert sum(tally.answers.values()) >= count
    if version == 3:
        assert {200, 400, 404, 422} <= tally.answers.keys()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_request_of_many_is_answered_by_a_failure(stack: Stack, api: ApiClient) -> None:
    """Some at once, so that the requests of one meet those of the others."""
    at_once, each = 4, 5000
    api.ensure_namespace(SPACE)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=context) as pool:
        runs = [pool.submit(grow, stack.url, stack.token, str(stack.ca), each, seed) for seed in range(at_once)]
        tallies = [run.result() for run in runs]
    assert [failure for tally in tallies for failure in tally.failures] == []
    answers = sum((tally.answers for tally in tallies), Counter())
    assert answers.total() >= at_once * each
    assert {200, 201, 400, 404, 409, 422} <= answers.keys()
    assert api.request("GET", f"{CORE}/namespaces/default")["kind"] == "Namespace"
