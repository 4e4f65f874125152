"""Objects as YAML for people: in kubectl's order, coloured, and what differs between two of them."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe

Document = dict[str, Any]

# What the server decides: no part of what a person writes.
_SERVER_SET = (
    "uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink",
    "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip
_CONTEXT_LINES = 3

_LINE = re.compile(r"(?P<lead>\s*(?:- )*)(?P<key>[^\s:'\"#][^:]*|'[^']*'|\"[^\"]*\"):(?P<value>(?: .*)?)")
_PLAIN = re.compile(r" (?:-?\d+(?:\.\d+)?|true|false|null|\{\}|\[\])")


def to_yaml(document: Mapping[str, Any]) -> str:
    """The object as `kubectl get -o yaml` prints it."""
    text: str = yaml.safe_dump(
        document, sort_keys=True, allow_unicode=True, default_flow_style=False, width=100_000, line_break="\n"
    )
    return text


def writable(document: Mapping[str, Any]) -> Document:
    """The part of an object that its writers decide: no status, nothing that the server sets."""
    part = deepcopy({key: value for key, value in document.items() if key != "status"})
    if isinstance(part.get("metadata"), dict):
        part["metadata"] = {key: value for key, value in part["metadata"].items() if key not in _SERVER_SET}
    return part


def highlighted(text: str) -> SafeString:
    """YAML text with its keys and plain values marked, ready for a page."""
    return mark_safe("\n".join(_highlighted_line(line) for line in text.splitlines()))


def _highlighted_line(line: str) -> str:
    found = _LINE.fullmatch(line)
    if found is None:
        return escape(line)
    value = found["value"]
    shown = format_html('<span class="yaml-plain">{}</span>', value) if _PLAIN.fullmatch(value) else escape(value)
    return format_html('{}<span class="yaml-key">{}</span>:{}', found["lead"], found["key"], shown)


@dataclass(frozen=True)
class DiffLine:
    """One line of a difference. sign: "+", "-", " ", or "…" where equal lines are left out (then text is empty)."""

    sign: str
    text: str

    @property
    def kind(self) -> str:
        return {"+": "added", "-": "removed", "…": "skipped"}.get(self.sign, "same")


def differences(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[DiffLine]:
    """How one object becomes another, as lines of YAML; None: there is none. Empty when nothing differs."""
    old = to_yaml(before).splitlines() if before is not None else []
    new = to_yaml(after).splitlines() if after is not None else []
    lines = []
    for number, line in enumerate(difflib.unified_diff(old, new, lineterm="", n=_CONTEXT_LINES)):
        if number < 2:
            continue  # the names of the two files
        if line.startswith("@@"):
            if number > 2:
                lines.append(DiffLine("…", ""))
        else:
            lines.append(DiffLine(line[0], line[1:]))
    return lines


def changed_paths(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Sequence[str]:
    """Which fields differ, two levels deep: "spec.ports", "metadata.labels". Sorted."""
    return sorted(_changed(before or {}, after or {}))


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    for key in {*before, *after}:
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old or {}, dict) and isinstance(new or {}, dict):
            old, new = old or {}, new or {}
            yield from (f"{key}.{inner}" for inner in {*old, *new} if old.get(inner) != new.get(inner))
        else:
            yield key
