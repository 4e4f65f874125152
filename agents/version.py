"""The agent's version, as told in `hello`; the zipapp's has the start of its digest behind it (agents/build.py)."""

VERSION = "0.1.0"
