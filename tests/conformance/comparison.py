"""Whether an answer is what was recorded. Placeholders, captures and what is never compared: see README.md."""

import ipaddress
import json
import re
import urllib.parse
from typing import Any

SERVICE_RANGES = [ipaddress.ip_network(text) for text in ("10.96.0.0/16", "fd00:10:96::/112")]
NODE_PORTS = range(30000, 32768)
INITIAL_EVENTS_END = "k8s.io/initial-events-end"

# placeholder -> what the text it stands for looks like
FORMS = {
    "uid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z",
    "resourceVersion": r"[1-9]\d*",
    "listResourceVersion": r"\d+",
    "clusterIP": r"[0-9a-f.:]+",
    "nodePort": r"\d+",
    "healthCheckNodePort": r"\d+",
    "generatedName": r"[a-z0-9]{5}",
    "continue": r"\S+",
    "age": r"(?:\d+[smhdy]){1,2}",
    "any": r".*",
}
NUMBERS = {"nodePort", "healthCheckNodePort"}
DISTINCT = {"uid", "resourceVersion", "clusterIP", "nodePort", "generatedName"}
PLACEHOLDER = re.compile(rf"<({'|'.join(FORMS)})(?::(\d+))?>")
COUNT = re.compile(r"<count:(\d+)>")


class _Missing:
    def __repr__(self) -> str:
        return "(absent)"


MISSING = _Missing()


class MismatchError(AssertionError):
    """An answer differs from what was recorded, first at this path."""

    def __init__(self, path: str, expected: Any, got: Any) -> None:
        super().__init__(f"{path}: expected {_brief(expected)}, got {_brief(got)}")


def _brief(value: Any, limit: int = 200) -> str:
    text = repr(value) if value is MISSING else json.dumps(value, default=repr)
    return text if len(text) <= limit else text[:limit] + "…"


class Bindings:
    """What placeholders have stood for so far in one case. variables: "ns", and those of a repeated step."""

    def __init__(self, namespace: str) -> None:
        self.variables = {"ns": namespace}
        self.values: dict[str, Any] = {}

    def copy(self) -> "Bindings":
        other = Bindings("")
        other.variables, other.values = self.variables, dict(self.values)
        return other

    def fill(self, value: Any, *, quoted: bool = False) -> Any:
        """The same with known values in place of placeholders."""
        if isinstance(value, dict):
            return {self.fill(key): self.fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not isinstance(value, str):
            return value
        for name, text in self.variables.items():
            value = value.replace(f"{{{name}}}", text)
        if value in self.values:
            return self.values[value]

        def known(found: re.Match[str]) -> str:
            text = str(self.values.get(found[0], found[0]))
            return urllib.parse.quote(text, safe=":") if quoted else text

        return PLACEHOLDER.sub(known, value)

    def match(self, expected: Any, got: Any, path: str = "$", mode: str = "exact") -> None:
        """Raise MismatchError at the first place where `got` is not what was recorded. mode: as `match` of a step."""
        if isinstance(expected, str):
            self._match_text(expected, got, path)
        elif isinstance(expected, dict):
            self._match_object(expected, got, path, mode)
        elif isinstance(expected, list):
            self._match_array(expected, got, path, mode)
        elif type(expected) is not type(got) or expected != got:
            raise MismatchError(path, expected, got)

    def _match_object(self, expected: dict[str, Any], got: Any, path: str, mode: str) -> None:
        if not isinstance(got, dict):
            raise MismatchError(path, expected, got)
        for key, item in expected.items():
            if item == "<absent>":
                if got.get(key):
                    raise MismatchError(f"{path}.{key}", MISSING, got[key])
            elif key not in got:
                raise MismatchError(f"{path}.{key}", item, MISSING)
            else:
                self.match(item, got[key], f"{path}.{key}", mode)
        if mode == "exact":
            for key in sorted(got.keys() - expected.keys()):
                if not (key == "annotations" and path.endswith(".metadata")):
                    raise MismatchError(f"{path}.{key}", MISSING, got[key])

    def _match_array(self, expected: list[Any], got: Any, path: str, mode: str) -> None:
        if not isinstance(got, list):
            raise MismatchError(path, expected, got)
        if mode == "contains":
            known = {_identity(item): item for item in got}
            for item in expected:
                name = _identity(item)
                if name not in known:
                    raise MismatchError(f"{path}[{name}]", item, MISSING)
                self.match(item, known[name], f"{path}[{name}]", mode)
            return
        for index, (item, other) in enumerate(zip(expected, got, strict=False)):
            self.match(item, other, f"{path}[{index}]", mode)
        if len(expected) != len(got):
            index = min(len(expected), len(got))
            there, here = (items[index] if index < len(items) else MISSING for items in (expected, got))
            raise MismatchError(f"{path}[{index}]", there, here)

    def _match_text(self, expected: str, got: Any, path: str) -> None:
        for name, text in self.variables.items():
            expected = expected.replace(f"{{{name}}}", text)
        if count := COUNT.fullmatch(expected):
            if not isinstance(got, list) or len(got) != int(count[1]):
                raise MismatchError(path, expected, len(got) if isinstance(got, list) else got)
            return
        if expected == "<any>":
            return
        tokens = [found[0] for found in PLACEHOLDER.finditer(expected)]
        if not tokens:
            if type(got) is not str or got != expected:
                raise MismatchError(path, expected, got)
            return
        whole = PLACEHOLDER.fullmatch(expected)
        if type(got) is not (int if whole and whole[1] in NUMBERS else str):
            raise MismatchError(path, expected, got)
        pattern, end = "", 0
        for found in PLACEHOLDER.finditer(expected):
            pattern += re.escape(expected[end : found.start()]) + f"({FORMS[found[1]]})"
            end = found.end()
        texts = re.fullmatch(pattern + re.escape(expected[end:]), str(got), re.S)
        if not texts:
            raise MismatchError(path, expected, got)
        for token, text in zip(tokens, texts.groups(), strict=True):
            self._bind(token, text, path)

    def _bind(self, token: str, text: str, path: str) -> None:
        found = PLACEHOLDER.fullmatch(token)
        assert found is not None
        kind, number = found.groups()
        if kind == "clusterIP" and not _is_in_service_range(text):
            raise MismatchError(path, token, text)
        if kind in NUMBERS and int(text) not in NODE_PORTS:
            raise MismatchError(path, token, text)
        if number is None:
            return
        if token in self.values:
            if str(self.values[token]) != text:
                raise MismatchError(path, f"{token} = {self.values[token]}", text)
            return
        if kind in DISTINCT:
            for other, seen in self.values.items():
                if other.startswith(f"<{kind}:") and str(seen) == text:
                    raise MismatchError(path, f"a value other than that of {other}", text)
        self.values[token] = int(text) if kind in NUMBERS else text


def _is_in_service_range(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in SERVICE_RANGES)


def _identity(item: Any) -> Any:
    """What names an element of an array that is searched rather than walked."""
    if not isinstance(item, dict):
        return json.dumps(item)
    for key in ("name", "groupVersion", "version", "resource", "subresource", "type"):
        if key in item:
            return item[key]
    return item.get("metadata", {}).get("name")


def without_texts(value: Any) -> Any:
    """The same without what is never compared: managed fields, and texts written for people."""
    if isinstance(value, list):
        return [without_texts(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_texts(item) for key, item in value.items() if key != "managedFields"}
    if kept.get("kind") == "Status":
        kept.pop("message", None)
        causes = (kept.get("details") or {}).get("causes") or []
        for cause in causes:
            cause.pop("message", None)
        causes.sort(key=lambda cause: (cause.get("field", ""), cause.get("reason", "")))
    if kept.get("kind") == "Table":
        for column in kept.get("columnDefinitions") or []:
            column.pop("description", None)
        for row in kept.get("rows") or []:
            for condition in row.get("conditions") or []:
                condition.pop("message", None)
    return kept


def in_any_order(value: Any, keys: list[str]) -> Any:
    """The same with the arrays under these keys sorted by length and content, apart from identities."""

    def rank(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: rank(inner) for key, inner in item.items() if key not in ("metadata", "uid")}
        if isinstance(item, list):
            return [f"{len(item):06}", *map(rank, item)]
        count = COUNT.fullmatch(item) if isinstance(item, str) else None
        return [f"{int(count[1]):06}"] if count else item

    if isinstance(value, list):
        return [in_any_order(item, keys) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: in_any_order(item, keys) for key, item in value.items()}
    for key in keys:
        if isinstance(made.get(key), list):
            made[key].sort(key=lambda item: json.dumps(rank(item), sort_keys=True))
    return made


def events_of(stream: bytes) -> list[Any]:
    """The events of a watch, without bookmarks that come by the clock."""
    events = [json.loads(line) for line in stream.splitlines() if line.strip()]
    return [event for event in events if event.get("type") != "BOOKMARK" or INITIAL_EVENTS_END in json.dumps(event)]


def managers_of(body: dict[str, Any]) -> list[str]:
    """managedFields as sorted lines of manager, operation and subresource."""
    entries = body.get("metadata", {}).get("managedFields", [])
    return sorted(" ".join(filter(None, map(entry.get, ("manager", "operation", "subresource")))) for entry in entries)
