"""Responses that the server keeps, in memory or in a file of SQLite."""
