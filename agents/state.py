"""What a node should hold, and what a push changes in it.

Pure: values in, values out; the server imports this module too, so digest and delta have one definition.
A resource is `(driver, key, value)`; its element is `(driver, key)`. Several owners may claim one element with
the same value: it exists as long as one of them does. Never here: how a driver spells an element, disk, kernel.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern

Element = tuple[str, str]
Elements = Mapping[str, Mapping[str, str]]  # driver -> key -> value; a driver may be missing
Owners = Mapping[str, Iterable[Sequence[str]]]

EMPTY_DIGEST = "0" * 32
_MODULUS = 1 << 128


@dataclass(frozen=True)
class Refusal:
    """Why an owner's resources are not in force: a CamelCase reason and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Change:
    """What one driver has to do: elements to delete (with the value they have), then elements to add.

    A changed value is in both lists; the two belong into one transaction.
    """

    deletes: dict[str, str] = field(default_factory=dict)
    adds: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.deletes or self.adds)


@dataclass(frozen=True)
class Delta:
    """driver -> Change (drivers without a change are absent), and owner -> Refusal for all owners not in force."""

    changes: dict[str, Change]
    refused: dict[str, Refusal]

    def of(self, driver: str) -> Change:
        return self.changes.get(driver) or Change()

    def __bool__(self) -> bool:
        return bool(self.changes)


class ApplyError(ValueError):
    """A push that may not be applied to this state; `reason` is the protocol's word for it."""

    reason = "BadRequest"


class StaleRevision(ApplyError):
    """The push is older than the state."""

    reason = "StaleRevision"


class BaseMismatch(ApplyError):
    """The push builds on a revision this state has not reached."""

    reason = "BaseMismatch"


class _Shared:
    """The claims of an element named by more than one owner: owner -> value, and value -> number of claims."""

    __slots__ = ("claims", "values")

    def __init__(self) -> None:
        self.claims: dict[str, str] = {}
        self.values: dict[str, int] = {}


class State:
    """Owners with their resources, and which elements follow from them.

    `owners`: owner -> {(driver, key): value}, everything that was pushed, also of owners not in force.
    `refused`: owner -> Refusal, owners whose elements are all left out.
    Of two owners that give one element different values the later by name is refused, whatever the order of
    arrival: a sequence of deltas and one full push end in the same state.
    """

    def __init__(self, cluster: str | None = None) -> None:
        self.cluster = cluster
        self.revision = 0
        self.owners: dict[str, dict[Element, str]] = {}
        self._sums: dict[str, int] = {}
        self._sum = 0
        self._claims: dict[Element, str | _Shared] = {}
        self._barred: dict[str, Refusal] = {}
        self._conflicts: dict[str, Refusal] = {}

    @property
    def digest(self) -> str:
        """32 hex digits over everything pushed, equal to `digest(owners)`; O(1)."""
        return format(self._sum, "032x")

    @property
    def refused(self) -> dict[str, Refusal]:
        return {**self._conflicts, **self._barred}

    @property
    def barred(self) -> frozenset[str]:
        """Owners that were pushed as bad: they stay out until they are pushed again."""
        return frozenset(self._barred)

    def value(self, driver: str, key: str) -> str | None:
        """The value in force for an element, None when there is none."""
        return self._value((driver, key))

    def elements(self, driver: str) -> dict[str, str]:
        """key -> value of all elements in force for a driver; O(everything)."""
        return self.elements_of((driver,))[driver]

    def elements_of(self, drivers: Iterable[str]) -> dict[str, dict[str, str]]:
        """The same for several drivers at once."""
        found: dict[str, dict[str, str]] = {driver: {} for driver in drivers}
        owners, conflicts = self.owners, self._conflicts
        for element, claim in self._claims.items():
            driver, key = element
            if (into := found.get(driver)) is None:
                continue
            if type(claim) is str and claim not in conflicts:
                into[key] = owners[claim][element]
            elif (value := self._value(element)) is not None:
                into[key] = value
        return found

    def resources(self) -> dict[str, list[list[str]]]:
        """owner -> [[driver, key, value], …], the form a push has."""
        return {
            owner: [[driver, key, value] for (driver, key), value in held.items()]
            for owner, held in self.owners.items()
        }

    # What follows keeps the two indexes; `apply` and `bar` below are the only callers.

    def _value(self, element: Element) -> str | None:
        claim = self._claims.get(element)
        if claim is None:
            return None
        if isinstance(claim, str):
            return None if claim in self._conflicts else self.owners[claim][element]
        for owner, value in claim.claims.items():
            if owner not in self._conflicts:
                return value
        return None

    def _claim(self, owner: str, held: dict[Element, str]) -> None:
        for element, value in held.items():
            claim = self._claims.get(element)
            if claim is None:
                self._claims[element] = owner
                continue
            if isinstance(claim, str):
                first, claim = claim, _Shared()
                claim.claims[first] = theirs = self.owners[first][element]
                claim.values[theirs] = 1
                self._claims[element] = claim
            claim.claims[owner] = value
            claim.values[value] = claim.values.get(value, 0) + 1

    def _release(self, owner: str, held: dict[Element, str]) -> None:
        for element in held:
            claim = self._claims[element]
            if isinstance(claim, str):
                del self._claims[element]
                continue
            value = claim.claims.pop(owner)
            claim.values[value] -= 1
            if not claim.values[value]:
                del claim.values[value]
            if len(claim.claims) == 1:
                self._claims[element] = next(iter(claim.claims))

    def _rivals(self, owner: str, held: Iterable[Element]) -> Iterable[str]:
        """Later owners whose acceptance may depend on this owner's: those in a disputed element with it."""
        for element in held:
            claim = self._claims.get(element)
            if isinstance(claim, _Shared) and len(claim.values) > 1:
                for other in claim.claims:
                    if other > owner:
                        yield other

    def _conflict(self, owner: str, held: dict[Element, str]) -> Refusal | None:
        for element, value in held.items():
            claim = self._claims.get(element)
            if isinstance(claim, _Shared) and len(claim.values) > 1:
                for other, theirs in claim.claims.items():
                    if other < owner and theirs != value and other not in self._conflicts:
                        return Refusal(
                            "ElementConflict",
                            f"cannot apply {element[0]} {element[1]!r} as {value!r}: {other!r} gives it as {theirs!r}",
                        )
        return None

    def _fill(self, owners: Mapping[str, dict[Element, str]], barred: Mapping[str, Refusal]) -> dict[str, Change]:
        """`_replace` where nothing is held yet, in a third of the time."""
        for owner, held in owners.items():
            if held:
                self.owners[owner] = held
                if owner in barred:
                    self._barred[owner] = barred[owner]
                else:
                    self._claim(owner, held)
        if any(type(claim) is _Shared and len(claim.values) > 1 for claim in self._claims.values()):
            for owner in sorted(self.owners.keys() - self._barred.keys()):
                if verdict := self._conflict(owner, self.owners[owner]):
                    self._conflicts[owner] = verdict
        found = self.elements_of({driver for driver, _ in self._claims})
        return {driver: Change(adds=adds) for driver, adds in found.items() if adds}

    def _replace(self, changed: Mapping[str, dict[Element, str]], barred: Mapping[str, Refusal]) -> dict[str, Change]:
        """Give owners new resources (empty: gone) and settle who is in force; driver -> Change.

        1. Note the value in force of each element concerned. 2. Move the claims. 3. Judge the changed owners and
        those in dispute with them in the order of their names: judgements depend on earlier names only.
        """
        if not self.owners:
            return self._fill(changed, barred)
        before: dict[Element, str | None] = {}
        queue: list[str] = []

        def touch(elements: Iterable[Element]) -> None:
            for element in elements:
                if element not in before:
                    before[element] = self._value(element)

        for owner, held in changed.items():
            touch(self.owners.get(owner, ()))
            touch(held)
        for owner, held in changed.items():
            old = self.owners.get(owner, {})
            if owner not in self._barred:
                queue.extend(self._rivals(owner, old))
                self._release(owner, old)
            self._barred.pop(owner, None)
            if held:
                self.owners[owner] = held
                if owner in barred:
                    self._barred[owner] = barred[owner]
                    self._conflicts.pop(owner, None)
                else:
                    self._claim(owner, held)
                    queue.append(owner)
                    queue.extend(self._rivals(owner, held))
            else:
                self.owners.pop(owner, None)
                self._conflicts.pop(owner, None)

        heapq.heapify(queue)
        last = None
        while queue:
            owner = heapq.heappop(queue)
            if owner == last or owner not in self.owners or owner in self._barred:
                continue
            last = owner
            held = self.owners[owner]
            verdict = self._conflict(owner, held)
            if (verdict is None) == (owner not in self._conflicts):
                if verdict is not None:
                    self._conflicts[owner] = verdict
                continue
            touch(held)
            if verdict is None:
                del self._conflicts[owner]
            else:
                self._conflicts[owner] = verdict
            for other in self._rivals(owner, held):
                heapq.heappush(queue, other)

        changes: dict[str, Change] = {}
        for element, old_value in before.items():
            new_value = self._value(element)
            if new_value != old_value:
                driver, key = element
                change = changes.get(driver)
                if change is None:
                    change = changes[driver] = Change()
                if old_value is not None:
                    change.deletes[key] = old_value
                if new_value is not None:
                    change.adds[key] = new_value
        return changes


def apply(
    state: State,
    revision: int,
    since: int | None,
    owners: Owners,
    barred: Mapping[str, Refusal] | None = None,
) -> tuple[State, Delta]:
    """The state after a push, and what it changes. The given state is used up.

    `since` None: a full push, owners not named go away. Otherwise the named owners get exactly the resources
    listed (none: gone). `barred`: owners known to be bad; they count in the digest but have no elements.
    Raises StaleRevision, BaseMismatch before anything is changed. A push of the state's own revision that is
    not full changes nothing. Cost: O(resources of the named owners), of all owners for a full push.
    """
    check_base(state, revision, since)
    if since is not None and revision == state.revision:
        return state, Delta({}, state.refused)
    barred = barred or {}
    faults: dict[str, Refusal] = {}
    changed: dict[str, dict[Element, str]] = {}
    for owner, resources in owners.items():
        held: dict[Element, str] = {}
        for driver, key, value in resources:
            driver = intern(driver)  # a few words, a quarter of a million times
            if held.setdefault((driver, key), value) != value:
                message = f"cannot apply {driver} {key!r}: given twice with different values"
                faults[owner] = Refusal("ElementConflict", message)
        if held != state.owners.get(owner, {}) or owner in state._barred or owner in barred or owner in faults:
            changed[owner] = held
    if since is None:
        for owner in state.owners:
            if owner not in owners:
                changed[owner] = {}
    for owner, held in changed.items():
        state._sum = (state._sum - state._sums.pop(owner, 0)) % _MODULUS
        if held:
            state._sums[owner] = added = _owner_sum(owner, held.items())
            state._sum = (state._sum + added) % _MODULUS
    changes = state._replace(changed, {**faults, **barred})
    state.revision = revision
    return state, Delta(changes, state.refused)


def bar(state: State, refusals: Mapping[str, Refusal]) -> Delta:
    """Take owners out of force until they are pushed again; their resources still count in the digest."""
    changed = {owner: state.owners[owner] for owner in refusals if owner in state.owners}
    return Delta(state._replace(changed, refusals), state.refused)


def check_base(state: State, revision: int, since: int | None) -> None:
    """Raises StaleRevision or BaseMismatch when a push may not be applied to the state."""
    if revision < state.revision:
        raise StaleRevision(f"cannot apply revision {revision}: the node is at {state.revision}")
    if since is not None and since > state.revision:
        raise BaseMismatch(f"cannot apply a delta since {since}: the node is at {state.revision}")
    if since is not None and state.revision == 0 and state.owners:
        raise BaseMismatch("cannot apply a delta: the node holds the state of another control plane; send all owners")


def digest(owners: Owners) -> str:
    """32 hex digits over owner -> resources, in no order; of an element an owner gives twice the first counts."""
    return digest_of_sums(owner_sum(owner, resources) for owner, resources in owners.items())


def digest_of_sums(sums: Iterable[int]) -> str:
    """The same from each owner's `owner_sum`."""
    return format(sum(sums) % _MODULUS, "032x")


def owner_sum(owner: str, resources: Iterable[Sequence[str]]) -> int:
    """What an owner with these resources adds to the digest."""
    held: dict[Element, str] = {}
    for driver, key, value in resources:
        held.setdefault((driver, key), value)
    return _owner_sum(owner, held.items())


def _owner_sum(owner: str, held: Iterable[tuple[Element, str]]) -> int:
    sha256, from_bytes = hashlib.sha256, int.from_bytes
    total = 0
    for (driver, key), value in held:
        text = f"{owner}\0{driver}\0{key}\0{value}"
        total += from_bytes(sha256(text.encode()).digest()[:16], "big")
    return total % _MODULUS
