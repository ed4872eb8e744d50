"""Helpers that tests of several rooms share: models and their twins, processes, servers, and words of their own."""
