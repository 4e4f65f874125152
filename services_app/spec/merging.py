"""Documents beside their schema, for server-side apply: which fields one has, how two differ, what merging gives.

Pure functions of a type's name and values; who owns what is `managed_fields`' business. Documents need not be complete:
what an apply sends is a part of one, checked by `wire.partial`.
Source: sigs.k8s.io/structured-merge-diff v6 typed/{tofieldset,compare,merge,remove}.go.
"""

from typing import Any

from services_app.spec import fieldset, schema
from services_app.spec.fieldset import MEMBER, FieldSet
from services_app.spec.schema import Field

Document = dict[str, Any]


def fields_of(type_name: str, value: Document, *, containers: bool = False) -> FieldSet:
    """The fields a struct has. containers: structs, maps and lists are members as well, not only what is in them.

    Elements of keyed lists always are. kind and apiVersion are no fields.
    """
    known = schema.fields(type_name)
    made: FieldSet = {}
    for name, item in value.items():
        if name in known and (below := _below(known[name], item, containers)) is not None:
            made["f:" + name] = below
    return made


def _below(field: Field, value: Any, containers: bool) -> FieldSet | None:
    """What a set holds below the step to a field with this value; None when nothing of it is a field."""
    if field.shape == "leaf" or value is None or value == {}:
        return {}
    if field.shape == "struct":
        children = fields_of(field.type, value, containers=containers)
    elif field.shape == "map":
        children = {"f:" + key: {} for key in value}
    elif field.shape == "set":
        children = {fieldset.item(entry): {} for entry in value}
    else:
        children = {
            step: fieldset.member(fields_of(field.element, elements[0], containers=containers))
            for step, elements in _by_step(field, value).items()
        }
    return fieldset.member(children) if containers else children or None


def _by_step(field: Field, value: list[Any] | None) -> dict[str, list[Any]]:
    """The elements of a keyed list or a set by the step to them; more than one where they are not told apart."""
    found: dict[str, list[Any]] = {}
    for entry in value or ():
        found.setdefault(fieldset.item(entry) if field.shape == "set" else step_to(field, entry), []).append(entry)
    return found


def step_to(field: Field, entry: Document) -> str:
    """The step to an element of a keyed list; keys it lacks are left out."""
    keys = {key: entry.get(key, schema.MERGE_KEY_DEFAULTS.get(key)) for key in field.list_keys}
    return fieldset.element({key: value for key, value in keys.items() if value is not None})


def untold(type_name: str, value: Document, path: str = "") -> list[str]:
    """A sentence for each element of a keyed list or set that is there twice or has none of its keys."""
    found: list[str] = []
    known = schema.fields(type_name)
    for name, item in value.items():
        if name not in known or not item:
            continue
        field, here = known[name], f"{path}.{name}"
        if field.shape == "struct":
            found += untold(field.type, item, here)
        elif field.shape in ("keyed", "set"):
            for step, entries in _by_step(field, item).items():
                (spelled,) = fieldset.paths({step: {}})
                if field.shape == "keyed" and not any(entries[0].get(key) is not None for key in field.list_keys):
                    found.append(f"{here}: element omits its key {field.list_keys[0]!r}")
                elif len(entries) > 1:
                    found.append(f"{here}: duplicate entries for key {spelled}")
                elif field.shape == "keyed":
                    found += untold(field.element, entries[0], here + spelled)
    return found


def compare(type_name: str, old: Document, new: Document) -> tuple[FieldSet, FieldSet]:
    """(fields that are new or have another value, fields that are gone), containers included."""
    known = schema.fields(type_name)
    taken: FieldSet = {}
    gone: FieldSet = {}
    for name in {**old, **new}:
        if name not in known:
            continue
        step = "f:" + name
        if name not in new:
            gone[step] = _below(known[name], old[name], True)
        elif name not in old:
            taken[step] = _below(known[name], new[name], True)
        elif old[name] != new[name]:
            more_taken, more_gone = _compare_values(known[name], old[name], new[name])
            if more_taken is not None:
                taken[step] = more_taken
            if more_gone is not None:
                gone[step] = more_gone
    return taken, gone


def _compare_values(field: Field, old: Any, new: Any) -> tuple[FieldSet | None, FieldSet | None]:
    if field.shape == "leaf" or not (old or new):
        return {}, None
    if field.shape == "struct":
        taken, gone = compare(field.type, old or {}, new or {})
    elif field.shape == "map":
        old, new = old or {}, new or {}
        taken = {"f:" + key: {} for key in new if key not in old or old[key] != new[key]}
        gone = {"f:" + key: {} for key in old if key not in new}
    else:
        taken, gone = _compare_elements(field, _by_step(field, old), _by_step(field, new))
    return taken or None, gone or None


def _compare_elements(field: Field, old: dict[str, list[Any]], new: dict[str, list[Any]]) -> tuple[FieldSet, FieldSet]:
    def whole(entries: list[Any]) -> FieldSet:
        return {} if field.shape == "set" else fieldset.member(fields_of(field.element, entries[0], containers=True))

    taken = {step: whole(entries) for step, entries in new.items() if step not in old}
    gone = {step: whole(entries) for step, entries in old.items() if step not in new}
    for step in new:
        if step not in old or old[step] == new[step]:
            continue
        if len(old[step]) > 1 or len(new[step]) > 1:  # not told apart: changed as one
            taken[step] = {}
            continue
        more_taken, more_gone = compare(field.element, old[step][0], new[step][0])
        if more_taken:
            taken[step] = more_taken
        if more_gone:
            gone[step] = more_gone
    return taken, gone


def merge(type_name: str, live: Document, config: Document) -> Document:
    """The live document with everything the config says; what the config does not name stays."""
    known = schema.fields(type_name)
    made = dict(live)
    for name, item in config.items():
        made[name] = _merge_values(known[name], live[name], item) if name in live and name in known else item
    return made


def _merge_values(field: Field, live: Any, config: Any) -> Any:
    if field.shape == "leaf" or not live:
        return config
    if not config:
        return live
    if field.shape == "struct":
        return merge(field.type, live, config)
    if field.shape == "map":
        return live | config
    return _merge_elements(field, live, config)


def _merge_elements(field: Field, live: list[Any], config: list[Any]) -> list[Any]:
    """Elements of both in the order of the config; what is only in the live list stays behind what it stood behind."""
    ours, theirs = _by_step(field, live), _by_step(field, config)

    def merged(step: str) -> list[Any]:
        if step not in theirs:
            return ours[step]
        if field.shape == "set" or len(ours.get(step, ())) != 1:
            return theirs[step]
        return [merge(field.element, ours[step][0], theirs[step][0])]

    made: list[Any] = []
    left, right = list(ours), list(theirs)
    while left and right:
        shared = next((step for step in right if step in ours), None)
        if left[0] == right[0]:
            made += merged(right.pop(0))
            left.pop(0)
        elif left[0] not in theirs:
            made += merged(left.pop(0))
        elif left[0] != shared:
            left.pop(0)  # comes later: where the config has it
        else:
            made += merged(right.pop(0))
    for step in left:
        made += [] if step in theirs else merged(step)
    for step in right:
        made += merged(step)
    return made


def without(type_name: str, value: Document, fields: FieldSet) -> Document:
    """The document without the members of a set and all that is below them. Emptied containers are None."""
    known = schema.fields(type_name)
    made: Document = {}
    for name, item in value.items():
        below = fields.get("f:" + name)
        if below is None or name not in known:
            made[name] = item
        elif below and MEMBER not in below:
            made[name] = _values_without(known[name], item, below)
    return made


def _values_without(field: Field, value: Any, fields: FieldSet) -> Any:
    if not value or field.shape == "leaf":
        return value
    if field.shape == "struct":
        return without(field.type, value, fields) or None
    if field.shape == "map":
        return {key: item for key, item in value.items() if "f:" + key not in fields} or None
    if field.shape == "set":
        return [item for item in value if fieldset.item(item) not in fields] or None
    made = []
    for entry in value:
        below = fields.get(step_to(field, entry))
        if below is None:
            made.append(entry)
        elif below and MEMBER not in below:
            made.append(without(field.element, entry, below))
    return made or None


def with_named_fields(type_name: str, fields: FieldSet) -> FieldSet:
    """The set and every struct's field on the way to its members, so that what is emptied goes as well.

    Not the elements of lists and the entries of maps: those have members of their own.
    """
    known = schema.fields(type_name)
    made: FieldSet = {}
    for step, below in fields.items():
        field = known.get(step.removeprefix("f:"))
        if field is None or not below:
            made[step] = below
            continue
        if field.shape == "struct":
            below = with_named_fields(field.type, below)
        elif field.shape == "keyed":
            below = {
                inner: with_named_fields(field.element, more) if inner != MEMBER else more
                for inner, more in below.items()
            }
        made[step] = {MEMBER: {}, **below}
    return made
