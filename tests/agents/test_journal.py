"""What a node holds survives whatever happens to the process that writes it."""

from pathlib import Path

from agents.journal import Journal
from agents.state import Refusal, State, apply

ONE = {"a": [["dns", "x", "5"]]}
TWO = {"b": [["dns", "y", "5"]]}


def written(path: Path) -> State:
    journal = Journal(path)
    journal.rewrite(State("cluster"))
    journal.append(3, None, ONE, {})
    journal.append(7, 3, TWO, {"b": Refusal("InvalidResource", "bad")})
    return Journal(path).load()


def test_pushes_are_found_again(tmp_path: Path) -> None:
    state = written(tmp_path / "journal")
    assert (state.cluster, state.revision) == ("cluster", 7)
    assert state.elements("dns") == {"x": "5"}
    assert state.refused["b"].reason == "InvalidResource"
    expected, _ = apply(State("cluster"), 7, None, {**ONE, **TWO})
    assert state.digest == expected.digest


def test_a_torn_last_line_is_passed_over_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    whole = path.read_bytes()
    for cut in (1, 20):
        path.write_bytes(whole[:-cut])
        assert Journal(path).load().revision == 3
        journal = Journal(path)
        journal.load()
        journal.append(8, 3, TWO, {})
        assert Journal(path).load().revision == 8


def test_a_spoilt_line_ends_what_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    path.write_bytes(path.read_bytes().replace(b'"revision":3', b'"revision":4'))
    assert Journal(path).load().revision == 0


def test_a_rewritten_journal_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    state = written(path)
    Journal(path).rewrite(state)
    again = Journal(path).load()
    assert (again.cluster, again.revision, again.digest) == (state.cluster, state.revision, state.digest)
    assert again.refused == state.refused
    assert len(path.read_bytes().splitlines()) == 1


def test_without_a_file_nothing_is_held(tmp_path: Path) -> None:
    state = Journal(tmp_path / "journal").load()
    assert (state.cluster, state.revision, state.owners) == (None, 0, {})
