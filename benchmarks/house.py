"""How large the code is, and where it reaches into what is not its own. Reads the code, runs none of it.

    make bench-house

Whose an attribute is cannot be told without running the code: `._x` counts as ours if a class or module of ours
defines `_x`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Row, finish, show

ROOT = Path(__file__).parent.parent
OURS = ("pipeline", "trainer")
CODE_LINES = 5400
LONGEST_FILE, LONG_FILE, LONG_FILES = 400, 300, 5
MAIN_LINES = 40
# Lowest first.
FOLDERS = ("errors.py", "triplets", "files", "process", "corpus", "embedding", "packs", "mining", "reporting")
PRIVATE_MODULES = ("keras.src.", "tensorflow.python.")  # no underscore, yet no part of the interface
PROCESS_WIDE = ("sys.modules.", "os.dup2.", "os._exit.", "gc.")
SETTABLE = {  # attributes whose documentation says to set them
    "connection.text_factory",  # sqlite3.Connection
    "_buffers.scores",  # threading.local
    "self.network.model.stop_training",  # keras.Model, for callbacks
    "log.propagate",  # logging.Logger
    "optimizer.learning_rate",  # keras.optimizers.Optimizer
    "options.autotune.enabled",  # tf.data.Options
}
NAMESPACE = "arguments"  # argparse.Namespace: all of its attributes


def code_lines(text: str) -> int:
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                documentation.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and number not in documentation for number, line in lines)


def reached_into(sources: dict[str, str]) -> list[str]:
    """Private names of other packages, attributes set from outside, and what belongs to the whole process.

    Args:
      sources: the text of every file of ours, by name: what one defines, another may use.
    Returns:
      `file:line: name` of each place, in order.
    """
    trees = {file: ast.parse(text) for file, text in sources.items()}
    defined = {name for tree in trees.values() for name in _defined(tree)}
    used = {name for tree in trees.values() for name in _used(tree)}
    fields = {name for tree in trees.values() for name in _fields(tree)}
    places: dict[tuple[str, int, int], str] = {}
    for file, tree in trees.items():
        for node, what in _places(tree, defined, used, fields):  # of x._a._b the whole comes first: one place
            places.setdefault((file, node.lineno, node.col_offset), what)
    return [f"{file}:{line}: {what}" for (file, line, _), what in sorted(places.items())]


def _places(
    tree: ast.Module, defined: set[str], used: set[str], fields: set[str]
) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    imported = _imported(tree)

    def full_name(node: ast.AST) -> str:
        """Of a module or what is in it, however it was imported; empty for anything else."""
        if isinstance(node, ast.Attribute):
            base = full_name(node.value)
            return f"{base}.{node.attr}" if base else ""
        return imported.get(node.id, "") if isinstance(node, ast.Name) else ""

    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    if _is_private_module(alias.name):
                        yield node, alias.name
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                for alias in aliases:
                    if _is_private_module(f"{module}.{alias.name}"):
                        yield node, f"{module}.{alias.name}"
            case ast.Attribute(ctx=ast.Store() | ast.Del(), value=owner):
                if not _may_be_set(owner) and ast.unparse(node) not in SETTABLE and node.attr not in fields:
                    yield node, f"{ast.unparse(node)} is set"
            case ast.Call(
                func=ast.Name(id="setattr" | "delattr") | ast.Attribute(attr="__setattr__" | "__delattr__"),
                args=[owner, *_],
            ):  # fmt: skip
                if not _may_be_set(owner):
                    yield node, ast.unparse(node)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=str(attribute)), *_]):
                if _is_private(attribute) and attribute not in defined:
                    yield node, ast.unparse(node)
            case ast.ClassDef(bases=[_, *_], body=body):  # a method that none of ours calls: the base does
                for method in body:
                    if isinstance(method, ast.FunctionDef) and _is_private(method.name) and method.name not in used:
                        yield method, f"def {method.name}"
            case ast.Name() | ast.Attribute():
                name = full_name(node)
                private = isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in defined
                if private or _is_private_module(name) or f"{name}.".startswith(PROCESS_WIDE):
                    yield node, ast.unparse(node)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_")


def _is_private_module(name: str) -> bool:
    """Of a module or what is in it, by its full name."""
    parts = name.split(".")
    return parts[0] not in OURS and (f"{name}.".startswith(PRIVATE_MODULES) or any(map(_is_private, parts)))


def _may_be_set(owner: ast.expr) -> bool:
    """Whether any attribute of it may."""
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls", NAMESPACE)


def _imported(tree: ast.Module) -> dict[str, str]:
    """The full name of what each name in a file stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.partition(".")[0]
                found[name.asname or first] = name.name if name.asname else first
        elif isinstance(node, ast.ImportFrom):
            module = OURS[0] if node.level else node.module
            found |= {name.asname or name.name: f"{module}.{name.name}" for name in node.names}
    return found


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names of modules and classes, and of what methods set on self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    yield statement.name
                elif isinstance(statement, ast.Assign | ast.AnnAssign):
                    yield from (name.id for name in ast.walk(statement) if isinstance(name, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _may_be_set(node.value):
            yield node.attr


def _fields(tree: ast.Module) -> Iterator[str]:
    """Of the dataclasses that are ours: what they declare may be set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            declared = [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
            yield from (target.id for target in declared if isinstance(target, ast.Name))


def imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of our files each of our files imports, by name."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in sources}
    found: dict[str, set[str]] = {file: set() for file in sources}
    for file, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name.name}" for name in node.names]
            else:
                continue
            for name in names:  # a module, or something in one
                module = name if name in modules else name.rpartition(".")[0]
                if module in modules:
                    found[file].add(modules[module])
    return found


def against_the_order(found: dict[str, set[str]]) -> list[str]:
    """Imports of a folder that is higher, and imports that go round in a circle of files."""

    def height(file: str) -> int:
        package, _, rest = file.partition("/")
        folder = rest.partition("/")[0]
        if package == "trainer":
            return len(FOLDERS) + 1
        return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS) + 2  # a command

    wrong = [f"{a} imports {b}" for a, of in found.items() for b in sorted(of) if height(a) < height(b)]
    seen: dict[str, bool] = {}  # whether its imports are all looked at

    def visit(file: str) -> Iterator[str]:
        seen[file] = False
        for other in sorted(found[file]):
            if seen.get(other) is False:
                yield f"{file} imports {other}, in a circle"
            elif other not in seen:
                yield from visit(other)
        seen[file] = True

    return wrong + [line for file in sorted(found) if file not in seen for line in visit(file)]


def long_mains(sources: dict[str, str]) -> list[str]:
    """Commands whose `main` has more than MAIN_LINES lines."""
    mains = (
        (file, (node.end_lineno or 0) - node.lineno + 1)
        for file, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    return [f"{file}: {lines} lines" for file, lines in mains if lines > MAIN_LINES]


def loose(sources: dict[str, str]) -> list[str]:
    """Manifests read by a string, and argparse's Namespaces."""
    found = []
    for file, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Subscript(value=owner, slice=ast.Constant(value=str())):
                    if "manifest" in ast.unparse(owner).rpartition(".")[2]:
                        found.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
                case ast.Name(id="Namespace") | ast.Attribute(attr="Namespace"):
                    found.append(f"{file}:{node.lineno}: Namespace")
    return found


def _used(tree: ast.Module) -> Iterator[str]:
    """Attributes of anything but super(), and names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and not ast.unparse(node.value).startswith("super("):
            yield node.attr


def main() -> int:
    files = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    lengths = {file: len(text.splitlines()) for file, text in sources.items()}
    longest = max(lengths, key=lambda file: lengths[file])
    listed = {
        "places that use what is not ours": reached_into(sources),
        "imports against the order of folders, or in a circle": against_the_order(imports(sources)),
        f"mains of more than {MAIN_LINES} lines": long_mains(sources),
        "manifests read by key, and Namespaces": loose(sources),
    }
    long_files = sum(length > LONG_FILE for length in lengths.values())
    rows = [
        Row(what="lines of code", value=sum(map(code_lines, sources.values())), bound=CODE_LINES),
        Row(what="lines of the longest file", value=lengths[longest], bound=LONGEST_FILE, note=longest),
        Row(what=f"files of more than {LONG_FILE} lines", value=long_files, bound=LONG_FILES),
        *(Row(what=what, value=len(places), bound=0) for what, places in listed.items()),
        Row(what="bytes of README.md", value=(ROOT / "README.md").stat().st_size, bound=8192),
    ]
    for row in rows:
        show(row)
        print("".join(f"  {place}\n" for place in listed.get(row.what, [])), end="", flush=True)
    return finish("house", rows, places=listed)


if __name__ == "__main__":
    sys.exit(main())
