"""Kubernetes' HTTP API: one view for all kinds, watches, discovery. Rules live in `spec`, writing in `store`."""
