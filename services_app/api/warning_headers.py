"""Warnings beside an answer, spelled as Kubernetes does (apimachinery pkg/util/net and apiserver endpoints/filters)."""

import unicodedata
from collections.abc import Iterable

TOTAL = 4096  # characters of all warnings of one answer: beyond, each is cut
ITEM = 256  # characters of one warning once they are cut
HEADERS = 50  # in one answer: clients give up at a hundred headers of any name


def spell(sentences: Iterable[str]) -> list[str]:
    """The values of one answer's Warning headers, one for each sentence; those with control characters are left out."""
    said = [text for text in dict.fromkeys(sentences) if text and not any(map(_is_control, text))]
    if sum(map(len, said)) <= TOTAL:
        return [_line(text) for text in said]
    lines, written = [], 0
    for text in said:
        if written >= TOTAL:
            break
        text = text[:ITEM]
        written += len(text)
        lines.append(_line(text))
    return lines


def packed(lines: list[str]) -> list[str]:
    """The lines as they are sent: one a header, since not every client looks into one that holds several; what would be
    too many for clients is joined in the last, as HTTP allows.
    """
    return lines if len(lines) <= HEADERS else [*lines[: HEADERS - 1], ", ".join(lines[HEADERS - 1 :])]


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def _line(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{quoted}"'
