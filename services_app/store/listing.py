"""Lists of API objects: the newest state, or that of any revision the log still reaches back to.

A list is read by one statement, and so from one snapshot: its objects are exactly those of the revision it tells.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Any

from django.db import connection

from services_app.spec.errors import BadRequest, Expired, ServerTimeout
from services_app.spec.kinds import Kind
from services_app.spec.selectors import FieldSelector, Selector
from services_app.store import forms
from services_app.store.columns import model_of

Document = dict[str, Any]
Row = tuple[str, str, str | None, str]  # namespace, name, labels as JSON or None for "look into the document", document

TOKEN_FORM = "timonel/1"
AS_OF_NOW = -1  # in a token: go on from the place with whatever is there
_TOO_OLD = "The resourceVersion for the provided list is too old."
_TOKEN_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True)
class Page:
    """Part of a list, all of it as of `revision`. remaining: how many are left, None when unknown."""

    documents: list[str]
    revision: int
    continue_token: str = ""
    remaining: int | None = None


def list_objects(
    kind: Kind,
    namespace: str | None,
    *,
    labels: Selector | None = None,
    fields: FieldSelector | None = None,
    limit: int = 0,
    continue_token: str = "",
    at: int | None = None,
) -> Page:
    """The objects of a kind, in Kubernetes' order. namespace None: of all. One query.

    limit 0: all of them. at: the revision whose state is wanted, None for the newest; a continue token carries that of
    its first page. Raises BadRequest for a token this server did not give out, Expired when the log no longer reaches
    back to the revision, ServerTimeout for one that has not come yet.
    """
    after: tuple[str, str] | None = None
    if continue_token:
        at, after = _read_token(continue_token)
        at = None if at == AS_OF_NOW else at
    query = _Query(kind, namespace, at, after)
    judged = not query.narrow(labels, fields)
    if limit and not judged:
        query.limit = limit + 1
    head, oldest, count, rows = query.run(with_count=bool(limit) and labels is None and fields is None)
    if at is not None and at > head:
        raise too_large(at, head)
    if at is not None and at < oldest:
        if not continue_token:
            raise Expired(_TOO_OLD)
        raise Expired(_TOKEN_TOO_OLD, metadata={"continue": _write_token(AS_OF_NOW, after)})
    if forms.differ(kind):
        rows = [(*row[:3], forms.shown_text(kind, row[3])) for row in rows]
    if judged:
        rows = [row for row in rows if _is_selected(row, labels, fields)]
    revision = head if at is None else at
    documents = [row[3] for row in rows[: limit or None]]
    if not limit or len(rows) <= limit:
        return Page(documents, revision)
    last = rows[limit - 1]
    remaining = count - limit if count is not None else None
    return Page(documents, revision, _write_token(revision, (last[0], last[1])), remaining)


def too_large(asked: int, head: int) -> ServerTimeout:
    """The answer to a revision that has not come yet."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ServerTimeout(f"Too large resource version: {asked}, current: {head}", causes=[cause])


def place(namespace: str, name: str) -> tuple[str, str]:
    """What lists are sorted by: the keys Kubernetes stores objects under, where a-x/… comes before a/…."""
    return (f"{namespace}/", name)


class _Query:
    """The statement behind a list: the state of a kind at a revision, narrowed, from a place on."""

    def __init__(self, kind: Kind, namespace: str | None, at: int | None, after: tuple[str, str] | None) -> None:
        self.kind, self.at, self.after = kind, at, after
        self.limit = 0
        # Terms on columns that table and log have alike, and those that the table alone has
        self.where: list[str] = []
        self.values: list[Any] = []
        self.labels: dict[str, str] = {}
        self.with_labels = False
        self.one_namespace = namespace is not None or not kind.namespaced
        if namespace is not None:
            self._term("namespace = %s", namespace)

    def _term(self, sql: str, value: str) -> None:
        self.where.append(sql)
        self.values.append(
            value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        )  # in no name either, and PostgreSQL takes it

    def narrow(self, labels: Selector | None, fields: FieldSelector | None) -> bool:
        """Let the database judge what it can; whether that is all of both selectors."""
        is_all, self.with_labels = True, labels is not None
        for field, op, value in fields.terms if fields is not None else ():
            if field in ("metadata.name", "metadata.namespace"):
                self._term(f"{field.removeprefix('metadata.')} {'=' if op == '=' else '<>'} %s", value)
            else:
                is_all = False
        for term in labels.requirements if labels is not None else ():
            if term.op in ("=", "==", "in") and len(term.values) == 1 and term.key not in self.labels:
                self.labels[term.key] = term.values[0]
            else:
                is_all = False
        # The log has no column of labels: what comes from there is judged by its document.
        return is_all and not (self.labels and self.at is not None)

    def run(self, *, with_count: bool) -> tuple[int, int, int | None, list[Row]]:
        """The newest revision, the oldest the log reaches back to, the number of rows without limit, the rows."""
        state, values = self._state()
        count = "(SELECT count(*) FROM state)" if with_count else "NULL::bigint"
        order = "name" if self.one_namespace else "namespace || '/', name"
        page = f"ORDER BY {order} LIMIT {self.limit}" if self.limit else ""
        sql = f"""
            {state}
            SELECT revision, compacted_revision, {count}, NULL, NULL, NULL, NULL
              FROM services_app_controlplane WHERE id = 1
            UNION ALL
            (SELECT NULL, NULL, NULL, namespace, name, labels, document FROM state {page})
        """
        head, oldest, total = 0, 0, None
        rows: list[Row] = []
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            for row in cursor.fetchall():
                if row[6] is None:
                    head, oldest, total = row[:3]
                else:
                    rows.append(row[3:])
        rows.sort(key=lambda row: place(row[0], row[1]))
        return head, oldest, total, rows

    def _state(self) -> tuple[str, list[Any]]:
        """The WITH clause that makes `state`: namespace, name, labels, document; and its values."""
        where, values = self.where, self.values
        if self.after is not None:
            if self.one_namespace:
                where, values = [*where, "name > %s"], [*values, self.after[1]]
            else:
                where, values = [*where, "(namespace || '/', name) > (%s, %s)"], [*values, *place(*self.after)]
        now, now_values = [*where], [*values]
        if self.labels:
            now.append("labels @> %s::jsonb")
            now_values.append(json.dumps(self.labels))
        table = model_of(self.kind)._meta.db_table
        labels = "labels" if self.with_labels else "NULL::jsonb AS labels"
        if self.at is None:
            present = f"SELECT namespace, name, {labels}, document FROM {table} {_where(now)}"
            return f"WITH state AS NOT MATERIALIZED ({present})", now_values
        # What was first written after the revision tells what was there before: nothing, or `previous`.
        changed = f"""
            SELECT DISTINCT ON (namespace, name) namespace, name, previous FROM services_app_change
            {_where(["kind = %s", "revision > %s", *where])} ORDER BY namespace, name, revision"""
        untouched = [*now, "NOT EXISTS (SELECT FROM changed c WHERE (c.namespace, c.name) = (t.namespace, t.name))"]
        state = f"""
            SELECT namespace, name, {labels}, document FROM {table} t {_where(untouched)}
            UNION ALL SELECT namespace, name, NULL::jsonb, previous FROM changed WHERE previous IS NOT NULL"""
        sql = f"WITH changed AS MATERIALIZED ({changed}), state AS NOT MATERIALIZED ({state})"
        return sql, [self.kind.plural, self.at, *values, *now_values]


def _where(terms: list[str]) -> str:
    return f"WHERE {' AND '.join(terms)}" if terms else ""


def _is_selected(row: Row, labels: Selector | None, fields: FieldSelector | None) -> bool:
    _, _, own_labels, text = row
    document: Document | None = None
    if own_labels is None or fields is not None:
        document = json.loads(text)
    if labels is not None:
        have = json.loads(own_labels) if own_labels is not None else (document or {})["metadata"].get("labels")
        if not labels.matches(have):
            return False
    return fields is None or document is None or fields.matches(document)


def _write_token(revision: int, last: tuple[str, str] | None) -> str:
    return urlsafe_b64encode(json.dumps({"v": TOKEN_FORM, "rv": revision, "start": last}).encode()).decode()


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        content = json.loads(urlsafe_b64decode(token.encode()))
        namespace, name = content["start"]
        revision = int(content["rv"])
        if content["v"] != TOKEN_FORM or not AS_OF_NOW <= revision < 2**63 or revision == 0:
            raise ValueError("another form")
        return revision, (str(namespace), str(name))
    except (ValueError, KeyError, TypeError) as err:
        raise BadRequest("continue key is not valid: it was not given out by this server") from err
