"""Enrol many hosts at once: `python -m services_app.lab.enrolment` reads them as JSON from standard input.

Each goes the way of `timonel node enroll`, in one process: two hundred starts of that command take longer than the
enrolments themselves. The first that fails ends it with its reason on standard error.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import django
import paramiko

AT_ONCE = 4


def main() -> None:
    django.setup()
    # These need it: they ask for the database's tables when they are read.
    from django.db import close_old_connections

    from services_app.push import enroll, operations

    key = paramiko.PKey.from_path(sys.argv[1])

    def enrol(host: dict[str, str]) -> None:
        wanted = enroll.Host(host["name"], host["address"], key=key)
        operation = operations.enrolment(wanted, by="lab")
        steps = operations.recorded(operation, lambda: enroll.enroll(wanted, host["fingerprint"].__eq__, by="lab"))
        for _ in steps:
            pass
        close_old_connections()
        print(host["name"], flush=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(enrol, json.load(sys.stdin)))


if __name__ == "__main__":
    main()
