"""The dashboard: pages for people, rendered on the server and kept live by server-sent events."""
