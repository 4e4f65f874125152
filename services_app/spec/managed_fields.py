"""Who owns which field of an object: metadata.managedFields through creates, updates and applies.

An entry belongs to one manager, operation and subresource. Apply owns what its configuration names, Update what it
changed. Writes without a manager (the control plane's own) leave the entries as they are. An object that has none gets
none by updates; the first apply gives what it finds to "before-first-apply".
Source: k8s v1.36 apimachinery/pkg/util/managedfields, structured-merge-diff v6 merge/update.go; which subresource owns
what: GetResetFields of pkg/registry/{core,discovery}/*/strategy.go.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from services_app.spec import fieldset, merging, schema
from services_app.spec.errors import ApplyConflict, BadRequest, FieldError, invalid, too_long
from services_app.spec.fieldset import FieldSet
from services_app.spec.kinds import NAMESPACE, NODE, POD, SERVICE, Kind
from services_app.spec.wire import partial

Document = dict[str, Any]
Entries = list[Document]

MANAGER_LENGTH = 128  # bytes
UPDATERS = 10  # entries of updates an object has; the oldest are put together
APPLY, UPDATE = "Apply", "Update"
UNKNOWN, BEFORE_FIRST_APPLY, ANCIENT = "unknown", "before-first-apply", "ancient-changes"
KUBECTL = "kubectl"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
LAST_APPLIED_LIMIT = 256 * 1024

# Nobody's: what tells the object apart and what the server counts.
_IDENTITY = frozenset(
    {"creationTimestamp", "generation", "managedFields", "name", "namespace", "resourceVersion", "selfLink", "uid"}
)
# What the server gives where a writer leaves it out: nobody's until somebody writes it.
_GIVEN = {
    NAMESPACE: ("finalizers",),
    NODE: ("taints",),
    POD: ("preemptionPolicy", "priority", "tolerations"),
    SERVICE: ("clusterIP", "clusterIPs", "healthCheckNodePort", "ipFamilies", "ipFamilyPolicy"),
}


# Managers


@dataclass(frozen=True)
class Author:
    """In whose name, when (RFC 3339) and to which subresource an object is written; "" is the object itself."""

    manager: str
    now: str
    subresource: str = ""


def manager_of(field_manager: str, user_agent: str) -> str:
    """The name a write goes under: fieldManager, else the User-Agent up to its first slash."""
    if field_manager:
        return field_manager
    printable = "".join(char for char in user_agent.split("/")[0] if char.isprintable())
    return printable.encode()[:MANAGER_LENGTH].decode(errors="ignore") or UNKNOWN


def validate_manager(field_manager: str) -> list[FieldError]:
    """What is wrong with a fieldManager; an empty one is none."""
    errors = []
    if len(field_manager.encode()) > MANAGER_LENGTH:
        errors.append(too_long("fieldManager", MANAGER_LENGTH))
    for position, char in enumerate(field_manager):
        if not char.isprintable():
            rule = f"should only contain printable characters (invalid character at position {position})"
            errors.append(invalid("fieldManager", field_manager, rule))
    return errors


def _entry(kind: Kind, author: Author, operation: str, fields: FieldSet) -> Document:
    entry = {
        "manager": author.manager,
        "operation": operation,
        "apiVersion": kind.api_version,
        "time": author.now,
        "fieldsType": "FieldsV1",
        "fieldsV1": fieldset.in_order(fields),
    }
    return entry | {"subresource": author.subresource} if author.subresource else entry


def _is_of(entry: Document, author: Author, operation: str) -> bool:
    wanted = (author.manager, operation, author.subresource)
    return (entry["manager"], entry["operation"], entry.get("subresource", "")) == wanted


def _told(entry: Document) -> str:
    """A manager as conflicts name it."""
    told = json.dumps(entry["manager"], ensure_ascii=False)
    if entry.get("subresource"):
        told += f' with subresource "{entry["subresource"]}"'
    return told if entry["operation"] == APPLY else f"{told} using {entry['apiVersion']}"


def _in_order(entries: Iterable[Document]) -> Entries:
    keys = ("operation", "time", "manager", "apiVersion", "subresource")
    return sorted(entries, key=lambda entry: [entry.get(key) or "" for key in keys])


# What can be owned


def _ownable(kind: Kind, document: Document, subresource: str) -> Document:
    """The document without what nobody owns and what a write to this (sub)resource does not reach."""
    metadata = {key: value for key, value in (document.get("metadata") or {}).items() if key not in _IDENTITY}
    part = {**document, "metadata": metadata}
    if subresource == "status":
        part.pop("spec", None)
        if kind is POD:
            for key in ("deletionTimestamp", "ownerReferences"):
                metadata.pop(key, None)
    elif "status" in kind.subresources:
        part.pop("status", None)
    return part


def _given_by_server(kind: Kind, wanted: Document) -> FieldSet:
    """Fields the server fills in because a writer left them out."""
    spec = wanted.get("spec") or {}
    fields: FieldSet = {"f:" + name: {} for name in _GIVEN.get(kind, ()) if not spec.get(name)}
    return {"f:spec": fields} if fields else {}


@cache
def _nothing(kind: Kind) -> Document:
    """An object of which nothing was said: what is written even when empty. Not to be changed."""
    zero: Document = schema.zero(schema.root(kind))
    return {"metadata": {}, **zero}


# Creates and updates


def created(kind: Kind, wanted: Document, prepared: Document, author: Author) -> Entries:
    """The entries of a new object. wanted: as it was sent; prepared: with its defaults, before anything is allocated."""
    part = _ownable(kind, prepared, "")
    fields, _ = merging.compare(schema.root(kind), _nothing(kind), part)
    fields = fieldset.difference(fields, _given_by_server(kind, wanted))
    return [_entry(kind, author, UPDATE, fields)] if fields else []


def updated(kind: Kind, old: Document, wanted: Document, prepared: Document, author: Author) -> Entries:
    """The entries after an update from old to prepared, which was sent as wanted.

    Entries in wanted replace those there are, as kubectl does when it takes over from client-side apply; a single empty
    one takes all away. Those of a write that changes nothing stay as they are.
    """
    had: Entries = old["metadata"].get("managedFields") or []
    entries = had if author.subresource else _sent(wanted, had)
    if not entries:
        return []
    before, after = (_ownable(kind, document, author.subresource) for document in (old, prepared))
    taken, gone = merging.compare(schema.root(kind), before, after)
    if not taken and not gone:
        return entries
    left = _losing(entries, fieldset.union(taken, gone))
    taken = fieldset.difference(taken, _given_by_server(kind, wanted))
    if taken:
        own = [entry for entry in left if _is_of(entry, author, UPDATE)]
        left = [entry for entry in left if entry not in own]
        for entry in own:
            taken = fieldset.union(taken, entry["fieldsV1"])
        left.append(_entry(kind, author, UPDATE, taken))
    return _in_order(_capped(left))


def is_same(old: Document, new: Document) -> bool:
    """Whether two states differ in nothing, or in the times of entries, and so their order, alone."""
    if old == new:
        return True
    ours, theirs = (document["metadata"].get("managedFields") or [] for document in (old, new))
    if _in_order(entry | {"time": ""} for entry in ours) != _in_order(entry | {"time": ""} for entry in theirs):
        return False
    return old == new | {"metadata": new["metadata"] | {"managedFields": ours}}


def _sent(wanted: Document, had: Entries) -> Entries:
    """The entries a request brings, those there are when it brings none that can be read."""
    sent = (wanted.get("metadata") or {}).get("managedFields") or []
    if not sent or sent == had:
        return had
    if len(sent) == 1 and not any(sent[0].values()):
        return []
    try:
        return _in_order(_read(entry) for entry in sent)
    except (ValueError, RecursionError):
        return had


def _read(entry: Document) -> Document:
    """An entry that came from outside. Raises ValueError."""
    manager, subresource = entry.get("manager") or UNKNOWN, entry.get("subresource") or ""
    if entry.get("operation") not in (APPLY, UPDATE) or entry.get("fieldsType") != "FieldsV1":
        raise ValueError("operation must be Apply or Update, fieldsType FieldsV1")
    if validate_manager(manager) or validate_manager(subresource):
        raise ValueError("manager and subresource must be short and printable")
    read = {
        "manager": manager,
        "operation": entry["operation"],
        "apiVersion": entry.get("apiVersion") or "",
        "time": entry.get("time") or "",
        "fieldsType": "FieldsV1",
        "fieldsV1": fieldset.in_order(fieldset.parse(entry.get("fieldsV1") or {})),
    }
    kept = {key: value for key, value in read.items() if value != "" or key == "fieldsV1"}
    return kept | {"subresource": subresource} if subresource else kept


def _losing(entries: Entries, fields: FieldSet) -> Entries:
    """The entries without fields that were changed; those that own nothing any more are gone."""
    left = []
    for entry in entries:
        rest = fieldset.difference(entry["fieldsV1"], fields)
        if rest:
            left.append(entry if rest == entry["fieldsV1"] else {**entry, "fieldsV1": rest})
    return left


def _capped(entries: Entries) -> Entries:
    """The entries, the oldest updates put together when there are too many."""
    updates = [entry for entry in entries if entry["operation"] == UPDATE]
    surplus = len(updates) - UPDATERS
    if surplus <= 0:
        return entries
    updates.sort(key=lambda entry: (entry["manager"] != ANCIENT, entry.get("time") or "", entry["manager"]))
    oldest = updates[: surplus + 1]
    fields: FieldSet = {}
    for entry in oldest:
        fields = fieldset.union(fields, entry["fieldsV1"])
    ancient = {**oldest[-1], "manager": ANCIENT, "fieldsV1": fieldset.in_order(fields)}
    ancient.pop("subresource", None)
    return [*(entry for entry in entries if entry not in oldest), ancient]


# Apply


def configuration(kind: Kind, value: Any) -> tuple[Document, list[str]]:
    """The body of an apply, checked: every field known and of the right type, every element told apart.

    With a sentence for each field that was given twice, of which the last counts. Raises BadRequest; Kubernetes answers
    unknown fields and duplicate keys with 500 (docs/decisions/0050).
    """
    if not isinstance(value, dict):
        raise BadRequest("error decoding YAML: an apply patch must be an object")
    if value.get("apiVersion") != kind.api_version or value.get("kind") != kind.kind:
        raise BadRequest(
            "Incorrect version specified in apply patch. Specified patch version: "
            f"{value.get('apiVersion') or ''}, Kind={value.get('kind') or ''}, "
            f"expected: {kind.api_version}, Kind={kind.kind}"
        )
    document, sentences = partial(kind, value)
    twice = [sentence for sentence in sentences if sentence.startswith("duplicate field")]
    problems = [sentence for sentence in sentences if sentence not in twice]
    metadata = document.get("metadata") or {}
    problems += merging.untold(schema.root(kind), document)
    if problems:
        name = "/".join(filter(None, (metadata.get("namespace"), metadata.get("name"))))
        about = f"{name}; {kind.api_version}, Kind={kind.kind}"
        raise BadRequest(f"failed to create typed patch object ({about}): {'; '.join(problems)}")
    if metadata.get("managedFields"):
        raise BadRequest("metadata.managedFields must be nil")
    return document, twice


def applied(kind: Kind, live: Document | None, config: Document, author: Author, *, force: bool) -> Document:
    """The live object, None for one that is not there yet, with the configuration applied, entries included.

    What the manager applied before, does not apply now, and nobody else owns is removed. Raises ApplyConflict, naming
    every field that another manager owns with another value; force takes them over. Applying the same again gives the
    live object.
    """
    entries: Entries = []
    if live is None:
        live = {"kind": kind.kind, "apiVersion": kind.api_version}
    else:
        entries = live["metadata"].get("managedFields") or []
        if not entries and _fields(kind, config, author):
            entries = _found(kind, live, replace(author, manager=BEFORE_FIRST_APPLY))
    try:
        document, entries = _merged(kind, live, config, entries, author, force=force)
    except ApplyConflict as conflict:
        if author.manager != KUBECTL or not _were_last_applied(kind, live, conflict):
            raise
        document, entries = _merged(kind, live, config, entries, author, force=True)
    if author.manager == KUBECTL and LAST_APPLIED in ((live.get("metadata") or {}).get("annotations") or {}):
        document = _with_last_applied(document, config)
    metadata = {key: value for key, value in (document.get("metadata") or {}).items() if key != "managedFields"}
    return {**document, "metadata": metadata | ({"managedFields": entries} if entries else {})}


def _fields(kind: Kind, config: Document, author: Author) -> FieldSet:
    """What the author of a configuration will own."""
    fields = merging.fields_of(schema.root(kind), _ownable(kind, config, author.subresource))
    return fieldset.in_order({step: below for step, below in fields.items() if step != "f:metadata" or below})


def _found(kind: Kind, live: Document, author: Author) -> Entries:
    """The entry for what an object holds that has none."""
    fields, _ = merging.compare(schema.root(kind), _nothing(kind), _ownable(kind, live, author.subresource))
    return [_entry(kind, author, UPDATE, fields)] if fields else []


def _merged(
    kind: Kind, live: Document, config: Document, entries: Entries, author: Author, *, force: bool
) -> tuple[Document, Entries]:
    """The merged document and its entries. Steps: merge, prune, look for conflicts, share out ownership."""
    root = schema.root(kind)
    fields = _fields(kind, config, author)
    own = next((entry for entry in entries if _is_of(entry, author, APPLY)), None)
    others = [entry for entry in entries if entry is not own]
    merged = merging.merge(root, live, config)
    if own:
        managed = merging.fields_of(root, config)  # names what nobody owns, too: metadata must not be emptied
        for entry in others:
            managed = fieldset.union(managed, entry["fieldsV1"])
        merged = _pruned(root, merged, own["fieldsV1"], managed)
    before, after = (_ownable(kind, document, author.subresource) for document in (live, merged))
    taken, gone = merging.compare(root, before, after)
    if not force:
        conflicts = [
            (_told(entry), path)
            for entry in others
            for path in fieldset.paths(fieldset.intersection(entry["fieldsV1"], taken))
        ]
        if conflicts:
            raise ApplyConflict(conflicts)
    left = _losing(others, fieldset.union(taken, gone))
    if own and own["fieldsV1"] == fields and left == others and not taken and not gone:
        return merged, entries
    if fields:
        left.append(_entry(kind, author, APPLY, fields))
    return merged, _in_order(left)


def _pruned(root: str, merged: Document, last: FieldSet, managed: FieldSet) -> Document:
    """The merged document without what was applied last and is managed by nobody now.

    1. All that was applied last is taken out. 2. What is managed is put back. 3. What had not been applied is put back.
    """
    named = merging.with_named_fields
    last = named(root, last)
    everything = named(root, merging.fields_of(root, merged))
    kept = named(root, merging.fields_of(root, merging.without(root, merged, last)))
    kept = fieldset.union(kept, named(root, managed))
    document = merging.without(root, merged, fieldset.difference(everything, kept))
    kept = named(root, merging.fields_of(root, document))
    lost = fieldset.difference(everything, kept)
    return merging.without(root, merged, fieldset.intersection(lost, last))


def _were_last_applied(kind: Kind, live: Document, conflict: ApplyConflict) -> bool:
    """Whether client-side apply set every contested field to what it is: then kubectl only goes over to server-side.

    The conflict is narrowed to the fields of which that is not so.
    """
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED)
    if not text:
        return False
    try:
        last, _ = partial(kind, json.loads(text))
        fields = merging.fields_of(schema.root(kind), last)
    except (ValueError, RecursionError, BadRequest):
        return False
    changed = fieldset.union(*merging.compare(schema.root(kind), last, live))
    allowed = {*fieldset.paths(fieldset.difference(fields, changed))}
    conflicts = [(manager, path) for manager, path in conflict.conflicts if path not in allowed]
    if conflicts and len(conflicts) < len(conflict.conflicts):
        raise ApplyConflict(conflicts) from conflict
    return not conflicts


def _with_last_applied(document: Document, config: Document) -> Document:
    """The document with client-side apply's annotation kept up to date, so that it can take over again."""
    metadata = dict(config.get("metadata") or {})
    annotations = dict(metadata.get("annotations") or {})
    if annotations.pop(LAST_APPLIED, None) is not None:
        metadata["annotations"] = annotations
    text = json.dumps({**config, "metadata": metadata}, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    kept = {**(document["metadata"].get("annotations") or {})}
    kept.pop(LAST_APPLIED, None)
    if len(text.encode()) < LAST_APPLIED_LIMIT:
        kept[LAST_APPLIED] = text + "\n"
    return {**document, "metadata": {**document["metadata"], "annotations": kept}}
