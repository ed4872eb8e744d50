"""Constraints of a text: GBNF, JSON Schema, regular expressions and Lark."""
