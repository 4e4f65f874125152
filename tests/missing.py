"""A host that lacks something."""

from collections.abc import Iterator
from contextlib import contextmanager

from services_app.lab.namespaces import Place


@contextmanager
def without(place: Place, program: str) -> Iterator[None]:
    """What is at a path is no program, in the place's own view: the machine and all others keep it."""
    path = place.run(["readlink", "-f", program]).stdout.strip()
    place.run(["mount", "--bind", "/dev/null", path])
    try:
        yield
    finally:
        place.run(["umount", path])
