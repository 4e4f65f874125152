"""Whatever is sent, the server answers for it: bodies grown from the schema, some of them bent, to every kind."""

import json
import random
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from services_app import store
from services_app.models import ApiToken
from services_app.spec import kinds, schema
from services_app.spec.kinds import Kind

NAMES = "abcdef"
BENT: list[Any] = [
    None,
    True,
    -1,
    2**31,
    2**63,
    1.5,
    "",
    "A/b",
    "\0",
    "\ud800",
    "x" * 300,
    [],
    {},
    [None],
    {"": ""},
    [[]],
]
VALUES: dict[str, list[Any]] = {
    "string": [
        "a",
        "web",
        "10.96.0.1",
        "None",
        "NodePort",
        "LoadBalancer",
        "TCP",
        "UDP",
        "Exact",
        "IPv4",
        "*",
        "/x",
        "::1",
    ],
    "int32": [0, 1, 80, 30000, 65536, -1],
    "int64": [0, 10, -5],
    "bool": [True, False],
    "float": [1.0],
    "time": ["2026-01-02T03:04:05Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00"],
    "microtime": ["2026-01-02T03:04:05.5Z"],
    "quantity": ["1", "2Gi", "x"],
    "intstr": [80, "http", 0],
    "bytes": ["YQ==", "!", ""],
    "any": [{"x": 1}],
}
KEYS = ["a", "b/c", "", "example.org/x", "tls.crt", "kubernetes.io/ingress.class", "kubernetes.io/service-name"]
QUERIES = [
    "dryRun=All",
    "limit=2",
    "limit=1&resourceVersion=3",
    "resourceVersion=1&resourceVersionMatch=Exact",
    "resourceVersion=99999999999999999999",
    "continue=eyJ2IjoidGltb25lbC8xIiwicnYiOjEsInN0YXJ0IjpbIlx1MDAwMCIsImEiXX0=",
    "fieldSelector=metadata.name%3Da%00",
    "fieldSelector=type%3Dx",
    "labelSelector=a+in+(b,c),!d",
    "fieldValidation=Strict",
    "propagationPolicy=Foreground",
    "propagationPolicy=Orphan",
    "gracePeriodSeconds=-1",
]
FORMS = [
    "application/json",
    "application/json;as=Table;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "application/yaml",
]
DELETES: list[Any] = [{}, [], {"preconditions": {"uid": "x"}}, {"preconditions": None}, {"orphanDependents": True}]
PATCHES = ["application/merge-patch+json", "application/strategic-merge-patch+json", "application/json-patch+json"]
POINTERS = ["", "/metadata/labels", "/metadata/name", "/spec", "/spec/ports/0", "/data", "/status"]


class Sender:
    """Random requests, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def value(self, type_name: str, depth: int = 0) -> Any:
        """A value of a type, now and then something else."""
        if self.chance.random() < 0.06:
            return self.chance.choice(BENT)
        if depth > 6:
            return None
        if type_name.startswith("[]"):
            return [self.value(type_name[2:], depth + 1) for _ in range(self.chance.choice([0, 1, 1, 2]))]
        if type_name.startswith("{}"):
            return {
                self.chance.choice(KEYS): self.value(type_name[2:], depth + 1) for _ in range(self.chance.randrange(3))
            }
        if type_name in VALUES:
            return self.chance.choice(VALUES[type_name])
        fields = schema.fields(type_name).values()
        return {
            field.name: self.value(field.type, depth + 1)
            for field in fields
            if self.chance.random() < (0.9 if field.required else 0.35)
        }

    def document(self, kind: Kind) -> Any:
        document = self.value(schema.root(kind))
        if isinstance(document, dict) and self.chance.random() < 0.9:
            document |= {"apiVersion": kind.api_version, "kind": kind.kind}
            metadata = document.get("metadata")
            known = metadata if isinstance(metadata, dict) and self.chance.random() < 0.5 else {}
            document["metadata"] = {**known, "name": self.chance.choice(NAMES), "namespace": "", "resourceVersion": ""}
        return document

    def path(self, kind: Kind, method: str) -> str:
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        path = f"{root}/namespaces/default/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
        if method in ("PUT", "PATCH", "DELETE") or (method == "GET" and self.chance.random() < 0.5):
            path += f"/{self.chance.choice([*NAMES, 'a%00b'])}"
            if kind.subresources and self.chance.random() < 0.2:
                path += f"/{self.chance.choice(kind.subresources)}"
        return path

    def body(self, kind: Kind, method: str, path: str) -> tuple[Any, str]:
        """What to send, and as which media type."""
        if method in ("POST", "PUT"):
            return self.document(kinds.BINDING if path.endswith("/binding") else kind), "application/json"
        if method == "DELETE":
            return self.chance.choice(DELETES), "application/json"
        media = self.chance.choice(PATCHES)
        if media != PATCHES[-1]:
            return self.document(kind), media
        operation = self.chance.choice(["add", "remove", "replace", "test"])
        return [{"op": operation, "path": self.chance.choice(POINTERS), "value": self.chance.choice(BENT)}], media


def send_many(seed: int, count: int) -> None:
    store.bootstrap()
    user = get_user_model().objects.create(username=f"sender-{seed}", is_staff=True, is_superuser=True)
    client = Client(raise_request_exception=False)
    token = ApiToken.issue(user, "sender")
    sender, chance = Sender(seed), random.Random(-seed)
    answers: set[int] = set()
    for _ in range(count):
        kind = chance.choice(kinds.KINDS)
        method = chance.choice(["GET", "POST", "POST", "POST", "PUT", "PATCH", "DELETE"])
        path = sender.path(kind, method)
        body, media = sender.body(kind, method, path) if method != "GET" else (None, "")
        query = f"?{chance.choice(QUERIES)}" if chance.random() < 0.4 else ""
        headers = {"Authorization": f"Bearer {token}", "Accept": chance.choice([*FORMS, *FORMS[:1] * 5])}
        text = json.dumps(body) if method != "GET" else ""
        response = client.generic(method, path + query, text, content_type=media, headers=headers, secure=True)
        # 504 is the answer to a version that has not come yet
        assert response.status_code < 500 or response.status_code == 504, (method, path + query, text, response.content)
        answers.add(response.status_code)
    assert {200, 201, 404, 405, 422} <= answers


@pytest.mark.parametrize("seed", [4, 36])
def test_no_request_is_answered_by_a_failure_of_the_server(db, seed):
    send_many(seed, 400)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(100, 110))
def test_no_request_of_many_is_answered_by_a_failure_of_the_server(db, seed):
    send_many(seed, 2000)
