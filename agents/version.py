"""The agent's version, as told in `hello` and stamped on the zipapp."""

VERSION = "0.1.0"
