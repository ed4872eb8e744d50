"""Whole tasks on a context of their own: generate, infill, embed, rerank."""
