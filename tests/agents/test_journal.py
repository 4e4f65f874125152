"""What a node holds survives whatever happens to the process that writes it."""

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.journal import Journal
from agents.node import Node
from agents.state import Refusal, State, apply, digest

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


def test_what_another_agent_judged_is_told_from_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    written(path)
    journal = Journal(path)
    journal.load()
    assert journal.is_own
    monkeypatch.setattr("agents.journal.VERSION", "another")
    state = journal.load()
    assert not journal.is_own
    journal.append(8, 7, ONE, {})  # its own, after what is not
    journal.load()
    assert not journal.is_own
    journal.rewrite(state)
    journal.load()
    assert not journal.is_own, "to write it anew is not to judge it"
    journal.is_own = True
    journal.rewrite(state)
    again = Journal(path)
    again.load()
    assert again.is_own
    journal.begin("cluster", 9, TWO, {})
    assert journal.is_own
    again.load()
    assert again.is_own


def test_a_node_leaves_out_what_only_another_agent_could_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = {"later": [["nft4", "of_a_later_agent 10.96.0.1", ""]], "now": [["nft4", "cluster_ips 10.96.0.1", ""]]}
    with monkeypatch.context() as other:
        other.setattr("agents.journal.VERSION", "another")
        Journal(tmp_path / "journal").begin("cluster", 9, unreadable, {})
    node = Node(tmp_path, tmp_path)
    assert {owner: why["reason"] for owner, why in node.rejected().items()} == {"later": "InvalidResource"}
    assert node.state.elements("nft4") == {"cluster_ips 10.96.0.1": ""}
    assert node.digest == digest(unreadable), "it holds what was pushed"


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


def test_what_another_control_plane_left_survives_a_restart(tmp_path: Path) -> None:
    left, _ = apply(State("new"), 0, None, ONE)
    Journal(tmp_path / "journal").rewrite(left)
    state = Journal(tmp_path / "journal").load()
    assert (state.cluster, state.revision, state.resources()) == ("new", 0, ONE)


def test_only_looking_cuts_nothing_off_that_somebody_else_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    half = path.read_bytes()[:-5]
    path.write_bytes(half)
    Journal(path).load()
    assert path.read_bytes() == half


@pytest.mark.parametrize("content", [b"\n", b"\x00" * 4096, b"{}\n", b"deadbeef {}\n", b"\xff\xfe\n\n"])
def test_a_file_of_something_else_holds_nothing_and_is_written_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    journal = Journal(path)
    assert journal.load().owners == {}
    journal.rewrite(State("cluster"))
    assert Journal(path).load().cluster == "cluster"


def test_a_disk_without_room_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    written(path)
    before = path.read_bytes()
    journal = Journal(path)
    journal.load()

    def open_full(*arguments: object) -> object:
        file = path.open("ab", buffering=0)
        write = file.write

        class Full:
            """A file on a disk that takes ten bytes more."""

            def __enter__(self) -> object:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def tell(self) -> int:
                return file.tell()

            def write(self, content: bytes) -> int:
                write(content[:10])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    monkeypatch.setattr("builtins.open", open_full)
    with pytest.raises(OSError, match="No space"):
        journal.append(8, 7, ONE, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    journal.append(8, 7, ONE, {})
    assert Journal(path).load().revision == 8


def test_killed_between_writing_down_and_applying_the_push_is_held(tmp_path: Path) -> None:
    # The kernel may have seen it or not: the next agent holds it and repairs.
    path = tmp_path / "journal"
    written(path)
    journal = Journal(path)
    journal.load()
    journal.append(9, 7, {"c": [["nft4", "z", "1"]]}, {})
    state = Journal(path).load()
    assert (state.revision, state.elements("nft4")) == (9, {"z": "1"})


def test_a_full_push_takes_the_place_of_all_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    written(path)
    journal = Journal(path, least_size=10)
    journal.load()
    journal.begin("cluster", 9, TWO, {"b": Refusal("InvalidResource", "bad")})
    assert not journal.is_long
    assert path.read_bytes().count(b"\n") == 1
    state = Journal(path).load()
    assert (state.cluster, state.revision, state.owners.keys()) == ("cluster", 9, TWO.keys())
    assert state.barred == {"b"}

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        journal.begin("cluster", 10, ONE, {})
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["journal"]
    again = Journal(path, least_size=10)
    assert again.load().revision == 9
    assert not again.is_long  # the next agent does not write it anew with its first push


def test_it_is_rewritten_when_the_pushes_outweigh_the_state(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal, state = Journal(path, least_size=1000), State("cluster")
    journal.rewrite(state)
    for revision in range(1, 100):
        owners = {"a": [["dns", f"name-{revision}", "5"]]}
        journal.append(revision, revision - 1, owners, {})
        state, _ = apply(state, revision, revision - 1, owners)
        if journal.is_long:
            journal.rewrite(state)
        assert path.stat().st_size < 1200
    assert Journal(path).load().resources() == state.resources()


@settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=3), st.lists(st.tuples(*[st.text(max_size=4)] * 3).map(list), max_size=2), max_size=2
        ),
        max_size=5,
    )
)
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, pushes) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal, state = Journal(path), State("cluster")
    journal.rewrite(state)
    for revision, owners in enumerate(pushes, start=1):
        journal.append(revision, revision - 1, owners, {})
        state, _ = apply(state, revision, revision - 1, owners)
    again = Journal(path).load()
    assert (again.revision, again.owners, again.digest) == (state.revision, state.owners, state.digest)
