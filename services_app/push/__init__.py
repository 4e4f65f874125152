"""From the log to the nodes: SSH sessions, enrolment, what to send, tasks, reports."""
