"""The local stack: PostgreSQL, Redis, certificates and the processes of `timonel serve`, under one data directory.

Nothing here touches a server that is already running: own sockets, own ports, own data.
"""
