"""Measure the shape of the code: rooms, circles, branches, parameters, long files, private access, hard English.

    python bench/house.py                       this checkout
    python bench/house.py ../other              another checkout
    python bench/house.py --list branches       the places behind a figure, as file:line
    python bench/house.py --json                the figures for a program
    python bench/house.py ../other --record before      writes them to docs/benchmarks/house.json and house.md

It reads sources and imports nothing of them, so it needs no build and nothing but the standard library. The figures:

rooms       Modules and packages directly in `offgrid_llama`; `folders` are the packages at any depth.
levels      The longest chain of imports, counted in modules or in rooms; the modules of a circle count as one. An import
            inside a function or under `TYPE_CHECKING` counts. The package's own `__init__.py` does not: it lists names.
circles     Sets of modules that import each other, directly or not, and the modules in them. Imports as for levels.
branches    Functions with a cyclomatic complexity over 10: one, and one for each `if`, `elif`, conditional expression,
            `for`, `while`, `except`, `case`, comprehension, and each `and` or `or`. A nested function counts by itself and
            in the function around it. Ruff's PLR0912 counts statements only, so its figures are lower.
parameters  Functions with more than 8 parameters, without `self`, `*args` and `**kwargs`. `public` are those that a user
            calls: reachable from `__all__` of `offgrid_llama`, `offgrid_llama.server` and the drop-in's `llama`, which has
            the signatures of others. `commands` are those of the command line, whose parameters are its options.
            `inside` are all others.
files       Files of src with more than 400 lines; `llama.cdef.h` does not count, which mirrors llama.h.
private     Reads and writes of `_name` through an object that is not `self` or `cls`, for each thousand lines of Python.
english     Sentences with a turn of phrase that the style sheet replaces, by the kind of text: see `house_english.py`.
hints       Sentences with a turn of phrase that is often, but not always, better replaced.
"""

from __future__ import annotations

import argparse
import ast
import json
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import house_english

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path("docs/benchmarks/house.json")
PACKAGE = "offgrid_llama"
PUBLIC = (PACKAGE, f"{PACKAGE}.server", f"{PACKAGE}.compat.llama_cpp.llama")
MAX_BRANCHES, MAX_PARAMETERS, MAX_LINES = 10, 8, 400
MIRROR_OF_LLAMA_H = "llama.cdef.h"

Function = ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension,
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One offender: where it is, and what it is or says."""

    path: str
    line: int
    what: str
    amount: int = 1


@dataclass
class House:
    """The figures of one checkout, and the places behind those that have places."""

    figures: dict[str, int | float] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)


class Package:
    """The modules of a package, read and parsed, with what each imports of the package."""

    def __init__(self, root: Path, name: str = PACKAGE) -> None:
        self.root = root
        self.name = name
        self.paths: dict[str, Path] = {}
        for path in sorted((root / "src" / name).rglob("*.py")):
            parts = path.relative_to(root / "src").with_suffix("").parts
            self.paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.texts = {module: path.read_text(encoding="utf-8") for module, path in self.paths.items()}
        self.trees = {module: ast.parse(text) for module, text in self.texts.items()}

    def where(self, module: str) -> str:
        """Return the path of a module as the checkout's reader writes it."""
        return self.paths[module].relative_to(self.root).as_posix()

    def is_package(self, module: str) -> bool:
        """Say whether a module is the `__init__.py` of a folder."""
        return self.paths[module].name == "__init__.py"

    def base(self, module: str, statement: ast.ImportFrom) -> str:
        """Return the absolute name of what stands after `from`."""
        if not statement.level:
            return statement.module or ""
        parts = module.split(".")
        parts = parts[: len(parts) - statement.level + self.is_package(module)]
        return ".".join([*parts, *([statement.module] if statement.module else [])])

    def imports(self, module: str) -> set[str]:
        """Return the modules of the package that a module imports, anywhere in it."""
        found: set[str] = set()
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self.base(module, node)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    found.add(inner if inner in self.paths else base)
        return {name for name in found if name in self.paths and name not in (module, self.name)}

    def graph(self) -> dict[str, set[str]]:
        """Return what each module imports, without the list of public names."""
        return {module: self.imports(module) for module in self.paths if module != self.name}

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Yield each function with its module; declarations of `@overload` are none."""
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, _FUNCTIONS) and not any("overload" in ast.unparse(d) for d in node.decorator_list):
                    yield module, node

    def find(self, module: str, name: str) -> tuple[str, ast.AST | None] | None:
        """Return where a name of a module is defined, through imports; a module of the package has no node."""
        if f"{module}.{name}" in self.paths:
            return f"{module}.{name}", None
        top = [each for node in self.trees[module].body for each in (node.body if isinstance(node, ast.If) else [node])]
        for node in top:
            if isinstance(node, (ast.ClassDef, *_FUNCTIONS)) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom):
                wanted = [alias.name for alias in node.names if (alias.asname or alias.name) == name]
                base = self.base(module, node)
                if wanted and base in self.paths:
                    return self.find(base, wanted[0])
        return None


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph (Tarjan), each after those that it leads to."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            at = stack.index(node)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def levels(graph: Mapping[str, set[str]]) -> int:
    """Return the length of the longest chain, in which a circle is one link."""
    height: dict[str, int] = {}
    for circle in circles(graph):
        below = {other for node in circle for other in graph.get(node, ())} - set(circle)
        height.update(dict.fromkeys(circle, 1 + max((height[other] for other in below), default=0)))
    return max(height.values(), default=0)


def complexity(function: Function) -> int:
    """Return the cyclomatic complexity of a function, with that of the functions in it."""
    nodes = list(ast.walk(function))
    operators = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return 1 + operators + sum(isinstance(node, _BRANCHES) for node in nodes)


def parameters(function: Function) -> int:
    """Return the number of named parameters, without `self` and `cls`."""
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def listed(tree: ast.Module) -> list[str]:
    """Return the strings in a module's `__all__`."""
    names: list[str] = []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = getattr(node, "value", None)
            constants = [each.value for each in ast.walk(value) if isinstance(each, ast.Constant)] if value else []
            names += [each for each in constants if isinstance(each, str)]
    return names


_CALLED = ("__init__", "__new__", "__call__")


def public_names(tree: ast.Module) -> list[str]:
    """Return the public names of a module: those in `__all__`, or else its functions without an underscore."""
    own = [each.name for each in tree.body if isinstance(each, _FUNCTIONS) and not each.name.startswith("_")]
    return listed(tree) or own


def public_functions(package: Package) -> set[Function]:
    """Return the functions and methods that a user calls."""
    found: set[Function] = set()

    def add(module: str, name: str) -> None:
        where, node = package.find(module, name) or ("", None)
        if isinstance(node, _FUNCTIONS):
            found.add(node)
        elif isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, _FUNCTIONS)]
            found.update(each for each in methods if each.name[0] != "_" or each.name in _CALLED)
            for base in node.bases:
                add(where, ast.unparse(base).split("[")[0])
        elif where and where not in PUBLIC:
            for inner in public_names(package.trees[where]):
                add(where, inner)

    for module in PUBLIC:
        for name in listed(package.trees[module]) if module in package.trees else ():
            add(module, name)
    return found


def is_command(function: Function) -> bool:
    """Say whether the parameters of a function are options of the command line."""
    return any("typer." in ast.unparse(each.annotation) for each in function.args.args if each.annotation)


def measure_rooms(package: Package, house: House) -> None:
    """Count rooms, folders, levels and circles."""
    graph = package.graph()
    rooms: dict[str, set[str]] = {}
    for module, others in graph.items():
        room = module.split(".")[1]
        rooms.setdefault(room, set()).update({other.split(".")[1] for other in others} - {room})
    round_ = [circle for circle in circles(graph) if len(circle) > 1]
    house.figures |= {
        "rooms": len(rooms),
        "folders": sum(package.is_package(module) for module in graph),
        "levels.rooms": levels(rooms),
        "levels.modules": levels(graph),
        "circles": len(round_),
        "circles.files": sum(map(len, round_)),
    }
    house.places["circles"] = [
        Place(package.where(module), 1, f"circle {i}", len(circle))
        for i, circle in enumerate(round_, 1)
        for module in circle
    ]


def measure_functions(package: Package, house: House) -> None:
    """Count branches and parameters."""
    public = public_functions(package)
    worst = total = 0
    branches: list[Place] = []
    many: dict[str, list[Place]] = {"public": [], "commands": [], "inside": []}
    for module, function in package.functions():
        total += 1
        n_branches, n_parameters = complexity(function), parameters(function)
        worst = max(worst, n_branches)
        where = package.where(module), function.lineno
        if n_branches > MAX_BRANCHES:
            branches.append(Place(*where, f"{n_branches} branches: {function.name}", n_branches))
        if n_parameters > MAX_PARAMETERS:
            command = module.startswith(f"{PACKAGE}.cli") and is_command(function)
            kind = "commands" if command else "public" if function in public else "inside"
            many[kind].append(Place(*where, f"{n_parameters} parameters: {function.name}", n_parameters))
    house.figures |= {
        "functions": total,
        "branches": len(branches),
        "branches.percent": round(100 * len(branches) / max(total, 1), 1),
        "branches.worst": worst,
    }
    house.places["branches"] = sorted(branches, key=lambda place: -place.amount)
    for kind, places in many.items():
        house.figures[f"parameters.{kind}"] = len(places)
        house.places[f"parameters.{kind}"] = sorted(places, key=lambda place: -place.amount)


def measure_files(package: Package, house: House) -> None:
    """Count long files."""
    for kind, suffixes in (("python", {".py", ".pyi"}), ("native", {".c", ".cpp", ".h", ".hpp"})):
        long = []
        for path in sorted((package.root / "src").rglob("*")):
            if path.suffix in suffixes and path.name != MIRROR_OF_LLAMA_H:
                n = len(path.read_text(encoding="utf-8").splitlines())
                if n > MAX_LINES:
                    long.append(Place(path.relative_to(package.root).as_posix(), 1, f"{n} lines", n))
        house.figures[f"files.{kind}"] = len(long)
        house.places[f"files.{kind}"] = sorted(long, key=lambda place: -place.amount)


def measure_private(package: Package, house: House) -> None:
    """Count reads and writes of another object's private names."""
    places = []
    for module, tree in package.trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr[0] != "_" or node.attr.endswith("__"):
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                places.append(Place(package.where(module), node.lineno, ast.unparse(node)))
    lines = sum(len(text.splitlines()) for text in package.texts.values())
    house.figures |= {"lines": lines, "private": len(places)}
    house.figures["private.per_1000_lines"] = round(1000 * len(places) / max(lines, 1), 1)
    house.places["private"] = places


def measure_english(root: Path, house: House) -> None:
    """Count sentences, by the kind of text that they stand in."""
    places: dict[str, list[Place]] = {kind: [] for kind in house_english.KINDS}
    hints: list[Place] = []
    for each in house_english.search(root):
        place = Place(each.path, each.line, f"[{each.phrase}] {each.sentence}")
        (hints if each.phrase in house_english.HINTS else places[each.kind]).append(place)
    house.figures |= {f"english.{kind}": len(each) for kind, each in places.items()}
    house.figures |= {"english": sum(map(len, places.values())), "hints": len(hints)}
    house.places |= {f"english.{kind}": each for kind, each in places.items()} | {"hints": hints}


def measure(root: Path) -> House:
    """Return the figures of a checkout."""
    house = House()
    package = Package(root)
    if not package.paths:
        raise SystemExit(f"{root} has no src/{PACKAGE}")
    measure_rooms(package, house)
    measure_functions(package, house)
    measure_files(package, house)
    measure_private(package, house)
    measure_english(root, house)
    return house


# Each row of the table: its words, the figures that fill it, and what is asked.
ROWS = [
    ("rooms (modules and packages side by side)", "{rooms}", "about 17"),
    ("folders, at any depth", "{folders}", ""),
    ("levels of imports, in rooms", "{levels.rooms}", "about 11"),
    ("levels of imports, in modules", "{levels.modules}", ""),
    ("import circles, `TYPE_CHECKING` counted", "{circles} ({circles.files} files)", "0"),
    ("functions with more than 10 branches", "{branches} of {functions} ({branches.percent} %)", "at most 2 %"),
    ("branches of the worst function", "{branches.worst}", "at most 15"),
    ("functions with more than 8 parameters: inside", "{parameters.inside}", "0"),
    ("... public faces", "{parameters.public}", "a typed options class behind each"),
    ("... commands of the command line", "{parameters.commands}", ""),
    ("files over 400 lines: Python", "{files.python}", "0"),
    ("... C and C++, without `llama.cdef.h`", "{files.native}", "0"),
    ("uses of another object's `_private`, a thousand lines", "{private.per_1000_lines} ({private})", "at most 3"),
    *((f"sentences that the style sheet replaces: {kind}", f"{{english.{kind}}}", "0") for kind in house_english.KINDS),
    ("... all", "{english}", "0"),
    ("sentences that begin with `What`, or say `whatever`", "{hints}", "few"),
]


def cell(template: str, figures: Mapping[str, int | float]) -> str:
    """Fill a row's template with figures; an empty measurement gives a dash."""
    if not figures:
        return "-"
    for name, value in figures.items():
        template = template.replace(f"{{{name}}}", f"{value:,}")
    return template


def table(columns: Mapping[str, Mapping[str, int | float]]) -> str:
    """Return the rows in Markdown, with a column for each measurement."""
    lines = [["", *columns, "asked"], ["---", *["--:"] * len(columns), "---"]]
    lines += [[words, *(cell(template, each) for each in columns.values()), asked] for words, template, asked in ROWS]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PAGE = """# The shape of the code

Written by `python bench/house.py CHECKOUT --record before|after`. The docstring of the script defines each figure, and
`--list NAME` prints the places behind it. {commits}

{table}
"""


def record(column: str, root: Path, figures: Mapping[str, int | float]) -> None:
    """Keep a measurement as a column of the page, and write the page again."""
    path = ROOT / RECORD
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    asked = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    kept[column] = {"commit": commit, "figures": dict(figures)}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    columns = {name: kept.get(name, {}).get("figures", {}) for name in ("before", "after")}
    commits = " ".join(
        f"{name.capitalize()}: commit `{each['commit']}`." for name, each in sorted(kept.items(), reverse=True)
    )
    path.with_suffix(".md").write_text(PAGE.format(commits=commits, table=table(columns)), encoding="utf-8")


def lines_of(places: Iterable[Place]) -> str:
    """Return places as an editor opens them."""
    return "\n".join(f"{place.path}:{place.line}: {place.what}" for place in places)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--list", metavar="NAME", help="print the places of a figure, or of all that begin with NAME")
    parser.add_argument("--record", choices=("before", "after"), help="keep the figures in docs/benchmarks")
    arguments = parser.parse_args()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may end this early
    house = measure(arguments.checkout.resolve())
    if arguments.record:
        record(arguments.record, arguments.checkout, house.figures)
    if arguments.list:
        names = [name for name in house.places if name == arguments.list or name.startswith(f"{arguments.list}.")]
        if not names:
            parser.error(f"--list takes one of {', '.join(house.places)}")
        print("\n".join(lines_of(house.places[name]) for name in names if house.places[name]))
    elif arguments.json:
        print(json.dumps(house.figures, indent=1))
    else:
        print(table({"here": house.figures}))


if __name__ == "__main__":
    main()
