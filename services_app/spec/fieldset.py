"""Sets of fields, in the form in which managedFields carries them (FieldsV1): nothing has to be decoded to reckon.

A set maps steps to what it holds below them. A step is `f:name` (a field, or an entry of a map), `k:{"port":80,…}` (the
element of a keyed list with these keys) or `v:"text"` (an element of a set). Below a step stands `{}` when the step
itself is a member and nothing below it, else a set, in which `.` says that the step is a member, too:

    {"f:spec": {"f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}}}}}

holds the element and its port, neither `spec` nor `ports`. The empty set is `{}`. Functions leave arguments alone.
Source: sigs.k8s.io/structured-merge-diff v6 fieldpath/{set,serialize,path}.go.
"""

import json
from collections.abc import Iterator
from typing import Any

FieldSet = dict[str, Any]

MEMBER = "."


def element(keys: dict[str, Any]) -> str:
    """The step to an element of a keyed list."""
    return "k:" + json.dumps(keys, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def item(value: Any) -> str:
    """The step to an element of a set."""
    return "v:" + json.dumps(value, ensure_ascii=False)


def member(children: FieldSet) -> FieldSet:
    """What stands below a step that is a member, with these below it."""
    return {MEMBER: {}, **children} if children else {}


def _is_member(below: FieldSet) -> bool:
    return not below or MEMBER in below


def _below(is_member: bool, children: FieldSet) -> FieldSet | None:
    """What stands below a step, None when the step does not belong into the set."""
    return member(children) if is_member else children or None


def _children(below: FieldSet) -> FieldSet:
    return {step: more for step, more in below.items() if step != MEMBER} if MEMBER in below else below


def union(left: FieldSet, right: FieldSet) -> FieldSet:
    """What is in either."""
    made = dict(left)
    for step, below in right.items():
        if step in made and made[step] != below:
            is_member = _is_member(made[step]) or _is_member(below)
            joined = _below(is_member, union(_children(made[step]), _children(below)))
            assert joined is not None
            below = joined
        made[step] = below
    return made


def difference(left: FieldSet, right: FieldSet) -> FieldSet:
    """What is in the left and not in the right. A member of the right takes nothing below itself away."""
    made: FieldSet = {}
    for step, below in left.items():
        if step not in right:
            made[step] = below
            continue
        other = right[step]
        is_member = _is_member(below) and not _is_member(other)
        rest = _below(is_member, difference(_children(below), _children(other)))
        if rest is not None:
            made[step] = rest
    return made


def intersection(left: FieldSet, right: FieldSet) -> FieldSet:
    """What is in both."""
    made: FieldSet = {}
    for step, below in left.items():
        if step in right:
            other = right[step]
            is_member = _is_member(below) and _is_member(other)
            shared = _below(is_member, intersection(_children(below), _children(other)))
            if shared is not None:
                made[step] = shared
    return made


def in_order(fields: FieldSet) -> FieldSet:
    """The same with its steps in order, so that equal sets are equal texts."""
    return {step: in_order(below) if below else below for step, below in sorted(fields.items())}


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """Every member as Kubernetes spells its path: .spec.ports[port=80,protocol="TCP"].name, .metadata.finalizers[="x"]."""
    for step, below in sorted(fields.items()):
        if step == MEMBER:
            continue
        path = prefix + _spelled(step)
        if _is_member(below):
            yield path
        yield from paths(below, path)


def _spelled(step: str) -> str:
    kind, content = step[:2], step[2:]
    if kind == "k:":
        return "[" + ",".join(f"{key}={_quoted(value)}" for key, value in sorted(json.loads(content).items())) + "]"
    if kind == "v:":
        return f"[={_quoted(json.loads(content))}]"
    return f"[{content}]" if kind == "i:" else f".{content}"


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def parse(value: Any) -> FieldSet:
    """A fieldsV1 that came from outside, with steps spelled as here. Raises ValueError for what is none."""
    if not isinstance(value, dict):
        raise ValueError("fieldsV1 must be an object")
    made: FieldSet = {}
    for step, below in value.items():
        if step != MEMBER:
            children = parse(below)
            made[_parse_step(step)] = _below(_is_member(below), children)
    return made


def _parse_step(step: str) -> str:
    step.encode()  # lone surrogates cannot be stored: a UnicodeEncodeError is a ValueError
    kind, content = step[:2], step[2:]
    if kind == "f:":
        return step
    if kind == "k:":
        keys = json.loads(content)
        if not isinstance(keys, dict):
            raise ValueError(f"{step!r} names no keys")
        return element(keys)
    if kind == "v:":
        return item(json.loads(content))
    if kind == "i:" and content.isdecimal():
        return step
    raise ValueError(f"{step!r} is no step to a field")
