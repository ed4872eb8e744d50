"""Grammars in GBNF, under the names that they have in llama-cpp-python 0.3.36. They allow the same texts as those.

Two of them are not what their names say: ``CHESS_GBNF`` and ``JAPANESE_GBNF`` are JSON there, and here.
"""

from __future__ import annotations

__all__ = [
    "ARITHMETIC_GBNF", "CHESS_GBNF", "C_GBNF", "JAPANESE_GBNF", "JSON_ARR_GBNF", "JSON_GBNF", "JSON_LARK",
    "LIST_GBNF",
]  # fmt: skip

ARITHMETIC_GBNF = r"""
root ::= line+
line ::= sum "=" s operand "\n"
sum ::= operand ([+*/-] operand)*
operand ::= ([a-z] [_0-9a-z]* | [0-9]+) s | "(" s sum ")" s
s ::= [\t\n ]*
"""
"""Equations, one a line: a sum, and its result."""

C_GBNF = r"""
root ::= function*
function ::= type name "(" (type name)? ")" block
block ::= "{" statement* "}"
type ::= ("int" | "float" | "char") s
name ::= [A-Z_a-z] [0-9A-Z_a-z]*

statement ::= assignment ";" | type assignment ";" | call | return | loop | branch | comment
assignment ::= name s "=" s sum
call ::= name s "(" arguments? ");"
return ::= "return" s sum ";"
loop ::= ("while(" test | "for(" (type assignment | assignment) ";" s test ";" s assignment) ")" block
branch ::= "if(" test ")" block ("else" block)?
comment ::= "//" [^\n]* "\n" | "/*" ([^*] | "*" [^/])* "*/"

test ::= sum ("<" | "<=" | "==" | "!=" | ">=" | ">") sum
sum ::= product ([+-] product)*
product ::= value ([*/] value)*
value ::= "-"* (name | name "(" arguments? ")" | [0-9]+ | "(" s sum s ")")
arguments ::= sum ("," s sum)*
s ::= [\t\n ]+
"""
"""A small part of C."""

_VALUES = r"""
value ::= object | array | string | number | ("null" | "true" | "false") s
object ::= "{" s (pair ("," s pair)*)? "}" s
pair ::= string ":" s value
array ::= "[" s (value ("," s value)*)? "]" s
string ::= "\"" character* "\"" s
"""
_NUMBER = r"""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([Ee] [+-]? [0-9]+)? s
s ::= [\t\n ]*
"""
_ESCAPES = r'"\\" (["/\\bfnrt] | "u" [0-9A-Fa-f]{4})'

JSON_ARR_GBNF = rf"""
root ::= "[\n" s (value (",\n" s value)*)? "]"
character ::= [^\x00-\x1F"\\\x7F] | {_ESCAPES}
{_VALUES}{_NUMBER}"""
"""A JSON array with a line for each element."""

JSON_GBNF = rf"""
root ::= object
character ::= [^\x00-\x1F"\\\x7F] | "\\" (["\\bfnrt] | "u" [0-9A-Fa-f]{{4}})
number ::= "-"? digits ("." [0-9]+)? ([Ee] [+-]? [0-9] [1-9]{{0,15}})? s
digits ::= "0" | [1-9] [0-9]{{0,15}}
s ::= (" " | "\n" [\t ]{{0,20}})?
{_VALUES}"""
"""A JSON object."""
JSON_LARK = r"""
start: object
value: object | array | STRING S? | NUMBER S? | ("null" | "true" | "false") S?
object: "{" S? (pair ("," S? pair)*)? "}" S?
pair: STRING S? ":" S? value
array: "[" S? (value ("," S? value)*)? "]" S?
STRING: /"([^\x00-\x1F"\\\x7F]|\\(["\\bfnrt]|u[0-9A-Fa-f]{4}))*"/
NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]+)?([Ee][+\-]?[0-9][1-9]{0,15})?/
S: / |\n[\t ]{0,20}/
"""
"""The same texts in llguidance's Lark, whose long terminals take a fortieth of the time for a token."""

CHESS_GBNF = JAPANESE_GBNF = rf"""
root ::= object
character ::= [^"\\] | {_ESCAPES}
{_VALUES}{_NUMBER}"""

LIST_GBNF = r"""
root ::= ("- " character+ "\n")+
character ::= [^\n\x0B\x0C\r\x85\u2028\u2029]
"""
"""A list with a line for each item, as Markdown has it."""
