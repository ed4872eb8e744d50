"""llama.cdef.h and mtmd.cdef.h against the pinned headers, three ways.

1. As text: no function, enum, struct or constant of llama.h and mtmd.h is missing, and what is declared reads as in the
   header.
2. By the compiler: one small C++ program gives every size, offset and value, and says for every function, field and
   typedef whether the cdef's type is the header's. cffi alone would let int32_t pass for uint32_t.
3. By cffi: it verifies a struct when it is first used and a #define when it is first looked up. Of an enum it takes the
   compiler's values and never looks at those of the cdef; so these are compared with the header's text.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import pytest

from helpers.headers import CAPI, GGML_HEADERS, INCLUDE, VENDOR, needs_compiler, needs_headers, strip_comments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


WHOLE = {"llama.h": "LLAMA_API", "mtmd.h": "MTMD_API"}
"""The headers that are bound whole, and how each marks its functions."""


# Reading declarations ------------------------------------------------------------------------------------------------


@dataclass
class Declarations:
    """The declarations of a C header. Texts are free of comments and of needless spaces, so that they can be compared."""

    functions: dict[str, str] = field(default_factory=dict)  # name: prototype, in the header's order
    deprecated: set[str] = field(default_factory=set)
    enums: dict[str, dict[str, str]] = field(default_factory=dict)  # tag: constant: value as written, "" if none
    structs: dict[str, list[str]] = field(default_factory=dict)  # tag: fields; complete structs only
    typedefs: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)  # #define of a number, or of another such name
    strings: dict[str, str] = field(default_factory=dict)  # #define of a string

    @property
    def enum_constants(self) -> list[str]:
        return [name for constants in self.enums.values() for name in constants]


def tidy(text: str) -> str:
    """Drop every space that C does not need."""
    return re.sub(r"\s*([^\w\s])\s*", r"\1", re.sub(r"\s+", " ", text)).strip()


def split(text: str, separator: str) -> Iterator[str]:
    """Split at each ``separator`` that stands in no bracket, and leave out empty parts."""
    depth = start = 0
    for position, character in enumerate(text + separator):
        depth += (character in "{(") - (character in "})")
        if character == separator and depth == 0:
            if part := text[start:position].strip():
                yield part
            start = position + 1


def parse(text: str) -> Declarations:
    found = Declarations()
    text = strip_comments(text)
    for name, value in re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(-?\w+)[ \t]*$", text, re.MULTILINE):
        found.constants[name] = value
    for name, value in re.findall(r'^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+"(.*)"[ \t]*$', text, re.MULTILINE):
        found.strings[name] = value
    text = re.sub(r"#ifdef __CUDACC__.*?#else", "", text, flags=re.DOTALL)  # a template with a body, no declaration
    text = re.sub(r"^#ifdef +__cplusplus\n(?:(?!#)[^\n]*\n|#include[^\n]*\n)*#endif", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[ \t]*#(\\\n|[^\n])*", "", text, flags=re.MULTILINE)
    for statement in split(text, ";"):
        _parse_statement(tidy(statement), found)
    return found


def _parse_statement(statement: str, found: Declarations) -> None:
    if block := re.fullmatch(r"(?:typedef )?(enum|struct) (\w+)\{(.*)\}\w*", statement):
        kind, tag, body = block.groups()
        if kind == "struct":
            found.structs[tag] = list(split(body, ";"))
        else:
            pairs = [constant.partition("=") for constant in split(body, ",")]
            found.enums[tag] = {name: value for name, _, value in pairs}
    elif typedef := re.fullmatch(r"typedef .*?(?:\(\*(\w+)\)\(.*\)|\b(\w+))", statement):
        found.typedefs[typedef[1] or typedef[2]] = statement
    elif variable := re.fullmatch(r"static const char\*const (\w+)", statement):
        found.strings[variable[1]] = ""  # how the cdef writes a #define of a string
    elif "(" in statement:
        prototype = re.sub(r"\b(LLAMA|MTMD)_API\b", "", statement)
        bare = re.sub(r'\bDEPRECATED\((.*),"[^"]*"\)', r"\1", prototype)
        if match := re.search(r"(\w+)\(", bare):
            found.functions[match[1]] = bare.strip()
            if bare != prototype:
                found.deprecated.add(match[1])


def leaves(fields: list[str]) -> Iterator[str]:
    """Give the path of every plain field: ``key``, ``val_i64`` out of a nameless union, ``adamw.alpha``."""
    for text in fields:
        if nested := re.fullmatch(r"(?:struct|union)\{(.*)\}(\w*)", text):
            prefix = nested[2] + "." if nested[2] else ""
            yield from (prefix + leaf for leaf in leaves(list(split(nested[1], ";"))))
        elif name := re.search(r"\(\*(\w+)\)\(", text) or re.search(r"(\w+)(?:\[\w+\])*$", text):
            yield name[1]


def read_header(name: str) -> str:
    path = next((folder / name for folder in INCLUDE if (folder / name).is_file()), None)
    assert path is not None, f"no {name} in {VENDOR}: is the submodule checked out?"
    return path.read_text(encoding="utf-8")


@cache
def cdef() -> Declarations:
    return parse("\n".join((CAPI / f"{name}.cdef.h").read_text(encoding="utf-8") for name in ("llama", "mtmd")))


@cache
def whole_headers() -> Declarations:
    """The two headers that are bound whole, as one."""
    return parse("\n".join(map(read_header, WHOLE)))


@cache
def headers() -> Declarations:
    """All bound headers as one. Of the ggml headers' functions only what the compiler says is used below."""
    return parse("\n".join(read_header(name) for name in [*GGML_HEADERS, *WHOLE, "mtmd-helper.h"]))


def unbound() -> list[tuple[str, str]]:
    """Give the name and reason of each line of unbound.txt."""
    lines = (CAPI / "unbound.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition(" ") for line in lines if line.strip() and not line.startswith("#")]
    return [(name, reason.strip()) for name, _, reason in pairs]


# 1. As text ----------------------------------------------------------------------------------------------------------


@needs_headers
@pytest.mark.parametrize("header", WHOLE)
def test_reader_sees_every_function(header: str) -> None:
    """The reader in this file finds as many functions in a header as its word marks, but for those of C++."""
    marked = re.sub(r"^[ \t]*#.*$", "", strip_comments(read_header(header)), flags=re.MULTILINE)
    of_cpp = len(re.findall(r"\b\w+_API\s+std::", marked))
    found = parse(read_header(header))
    assert len(found.functions) == len(re.findall(rf"\b{WHOLE[header]}\b", marked)) - of_cpp
    assert len(found.deprecated) == len(re.findall(r"\bDEPRECATED\b", marked))


@needs_headers
def test_every_function_is_bound_or_listed() -> None:
    """Every function of llama.h and mtmd.h is in a cdef, or in unbound.txt with a reason."""
    accounted = cdef().functions.keys() | {name for name, _ in unbound()}
    assert [name for name in whole_headers().functions if name not in accounted] == []


@needs_headers
def test_unbound_lines_are_true() -> None:
    """A line of unbound.txt names one function of these headers that is not bound, once, and gives a reason."""
    names = [name for name, _ in unbound()]
    assert [name for name in names if name not in whole_headers().functions] == [], "in neither header"
    assert [name for name in names if name in cdef().functions] == [], "bound as well"
    assert [name for name, reason in unbound() if not reason] == [], "without a reason"
    assert sorted(set(names)) == sorted(names), "twice"


@needs_headers
def test_deprecated_functions_are_not_bound() -> None:
    """No deprecated function is bound, and unbound.txt says of no other function that it is deprecated."""
    assert [name for name in cdef().functions if name in whole_headers().deprecated] == []
    said = {name for name, reason in unbound() if reason.startswith("deprecated: ")}
    assert said == whole_headers().deprecated


@needs_headers
def test_functions_stand_in_the_order_of_the_headers() -> None:
    """The functions of the cdefs stand in their header's own order."""
    ours = [name for name in cdef().functions if name in whole_headers().functions]
    assert ours == [name for name in whole_headers().functions if name in cdef().functions]


@needs_headers
@pytest.mark.parametrize("kind", ["enums", "structs", "typedefs", "constants", "strings"])
def test_the_headers_are_declared_whole(kind: str) -> None:
    """Every enum, complete struct, typedef and constant of llama.h and mtmd.h is in a cdef."""
    assert [name for name in getattr(whole_headers(), kind) if name not in getattr(cdef(), kind)] == []


@needs_headers
@pytest.mark.parametrize("tag", cdef().enums)
def test_enum_reads_as_in_the_header(tag: str) -> None:
    """An enum has the header's constants, in its order and as it writes their values."""
    assert list(cdef().enums[tag].items()) == list(headers().enums[tag].items())


@needs_headers
@pytest.mark.parametrize("tag", cdef().structs)
def test_struct_reads_as_in_the_header(tag: str) -> None:
    """A struct has the header's fields, word for word and in its order."""
    assert cdef().structs[tag] == headers().structs[tag]


# 2. By the compiler --------------------------------------------------------------------------------------------------


def proc_addresses() -> dict[str, str]:
    """Give, for each name that the get_proc_address of the CPU and the RPC backend knows, the function it answers with."""
    files = [VENDOR / "ggml/src/ggml-cpu/ggml-cpu.cpp", VENDOR / "ggml/src/ggml-rpc/ggml-rpc.cpp"]
    source = "".join(strip_comments(file.read_text(encoding="utf-8")) for file in files)
    pattern = r'strcmp\(name, "(\w+)"\) == 0\) \{\s*return \(void \*\)\s*(\w+);'
    return dict(re.findall(pattern, source))


def header_type(typedef: str) -> str:
    """Write the type that ``typedef`` must be: the header's own, or that of the function behind a proc address."""
    if typedef in headers().typedefs:
        return f"::{typedef}"
    function = proc_addresses().get(typedef.removesuffix("_t"))
    return f"decltype(&::{function})" if function else "void"  # void is never the same


def probe_source() -> str:
    """Write a C++ program that prints `what=number` lines. The cdef's declarations go into a namespace of their own."""
    ours = cdef()
    structs = [f"struct {tag}_ {{ {''.join(text + ';' for text in texts)} }};" for tag, texts in ours.structs.items()]
    others = [text + ";" for text in [*ours.functions.values(), *ours.typedefs.values()]]

    rows = {name: name for name in [*ours.constants, *ours.enum_constants]}
    rows |= {f"sizeof enum {tag}": f"sizeof(enum {tag})" for tag in ours.enums}
    for tag, fields in ours.structs.items():
        rows[f"sizeof {tag}"] = f"sizeof(struct {tag})"
        rows[f"alignof {tag}"] = f"alignof(struct {tag})"
        for leaf in leaves(fields):
            rows[f"offsetof {tag}.{leaf}"] = f"offsetof(struct {tag}, {leaf})"
            rows[f"same {tag}.{leaf}"] = f"SAME(FIELD(struct {tag}, {leaf}), FIELD(cdef::{tag}_, {leaf}))"
    rows |= {f"same {name}": f"SAME(decltype(&::{name}), decltype(&cdef::{name}))" for name in ours.functions}
    rows |= {f"same {name}": f"SAME({header_type(name)}, cdef::{name})" for name in ours.typedefs}

    return "\n".join(
        [
            '#include "llama.h"',
            '#include "ggml-rpc.h"',
            '#include "mtmd.h"',
            '#include "mtmd-helper.h"',
            "#include <cstddef>",
            "#include <cstdio>",
            "#include <type_traits>",
            "#define FIELD(type, name) decltype(static_cast<type *>(nullptr)->name)",
            "#define SAME(...) std::is_same_v<__VA_ARGS__>",
            "namespace cdef {",
            *structs,
            *others,
            "}",
            "const struct { const char * what; long long number; } rows[] = {",
            *(f'{{"{what}", (long long) ({expression})}},' for what, expression in rows.items()),
            "};",
            'int main() { for (auto & row : rows) { std::printf("%s=%lld\\n", row.what, row.number); } }',
        ]
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Compile and run the program, once for the whole file, and give what it printed."""
    folder = tmp_path_factory.mktemp("probe")
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text(probe_source(), encoding="utf-8")
    options = ["-std=c++17", "-w", *(f"-I{path}" for path in INCLUDE)]
    build = subprocess.run(["c++", *options, source, "-o", program], capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    pairs = [line.rpartition("=") for line in output.splitlines()]
    return {what: int(number) for what, _, number in pairs}


@pytest.fixture(scope="module")
def capi() -> ModuleType:
    """Import the extension here, so that the tests on text run in a tree that is not built."""
    from offgrid_llama import _capi

    return _capi


@needs_headers
@needs_compiler
def test_types_are_those_of_the_headers(compiled: dict[str, int]) -> None:
    """Every function, field and typedef has exactly the header's type, signedness and const included."""
    same = {what: number for what, number in compiled.items() if what.startswith("same ")}
    assert same
    assert [what for what, number in same.items() if not number] == []


@needs_headers
@needs_compiler
@pytest.mark.parametrize("tag", cdef().structs)
def test_struct_layout_is_the_compilers(tag: str, compiled: dict[str, int], capi: ModuleType) -> None:
    """Size, alignment and every offset that cffi uses for a struct are the compiler's."""
    name = f"struct {tag}"
    ours = {f"sizeof {tag}": capi.ffi.sizeof(name), f"alignof {tag}": capi.ffi.alignof(name)}
    for leaf in leaves(cdef().structs[tag]):
        ours[f"offsetof {tag}.{leaf}"] = capi.ffi.offsetof(name, *leaf.split("."))
    assert ours == {what: compiled[what] for what in ours}


@needs_headers
@needs_compiler
@pytest.mark.parametrize("tag", cdef().enums)
def test_enum_values_are_the_compilers(tag: str, compiled: dict[str, int], capi: ModuleType) -> None:
    """Every constant of an enum has the compiler's value in ``lib`` and in the enum's cffi type."""
    constants = cdef().enums[tag]
    expected = {name: compiled[name] for name in constants}
    assert {name: getattr(capi.lib, name) for name in constants} == expected
    assert capi.ffi.typeof(f"enum {tag}").relements == expected
    assert capi.ffi.sizeof(f"enum {tag}") == compiled[f"sizeof enum {tag}"]


@needs_headers
@needs_compiler
def test_constants_are_the_compilers(compiled: dict[str, int], capi: ModuleType) -> None:
    """Every #define of a number has the compiler's value, both in the cdef and in ``lib``."""
    expected = {name: compiled[name] for name in cdef().constants}
    assert {name: int(value, 0) for name, value in cdef().constants.items()} == expected
    assert {name: getattr(capi.lib, name) for name in cdef().constants} == expected


@needs_headers
def test_strings_are_those_of_the_headers(capi: ModuleType) -> None:
    """Every #define of a string reads in ``lib`` as in the header."""
    ours = {name: capi.ffi.string(getattr(capi.lib, name)).decode() for name in cdef().strings}
    assert ours == {name: headers().strings[name] for name in ours}


# 3. By cffi ----------------------------------------------------------------------------------------------------------


def test_every_function_is_in_lib(capi: ModuleType) -> None:
    """Every function of the cdef can be looked up in ``lib`` and called."""
    assert [name for name in cdef().functions if not callable(getattr(capi.lib, name, None))] == []


def test_every_type_passes_cffi(capi: ModuleType) -> None:
    """Every typedef and struct of the cdef is known to ``ffi``, and cffi's own layout check passes for each."""
    typedefs, _, _ = capi.ffi.list_types()
    assert [name for name in cdef().typedefs if name not in typedefs] == []
    for tag in cdef().structs:
        assert capi.ffi.sizeof(f"struct {tag}") > 0
        assert capi.ffi.typeof(f"struct {tag}").fields
