"""Texts as they arrive in pieces, and JSON as strangers write it."""
