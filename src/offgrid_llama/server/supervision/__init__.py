"""Supervision of the worker processes: starts, watches and restarts them."""
