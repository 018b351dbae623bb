"""The layers: a file imports from files above its own only, and from few others."""

import ast
import sys
from pathlib import Path

import attrs
import pytest

import smsid_async

ROOT = Path(smsid_async.__file__).parent

# Each imports only from those before it. A new module gets its place here.
ORDER = [
    "_version",
    "errors",
    "models",
    "segments",
    "hooks",
    "_config",
    "_signing",
    "_retry",
    "_window",
    "_envelope",
    "budget",
    "_claims",
    "_sqlite",
    "_entries",
    "journal",
    "_registration",
    "_exchange",
    "_connections",
    "_request",
    "_verdict",
    "_http",
    "_options",
    "_fanout",
    "_resources",
    "_client",
    "_regions",
    "_sources",
    "_manifest",
    "_feeds",
    "_report",
    "_tracking",
    "bulk",
    "__init__",
    "cli",
]
ALONE = "sandbox"  # shares no code with the rest; only `cli` may start it
FOREIGN_IN_CORE = {"httpx", "anyio", "attrs", "tenacity"}
FOREIGN = {
    "_regions": {"phonenumbers"} | FOREIGN_IN_CORE,
    "sandbox": {"starlette", "uvicorn", "attrs"},
    "cli": {"typer", "click", "rich"} | FOREIGN_IN_CORE,
}
READS_ENVIRONMENT = {"_config.py"}


@attrs.frozen
class Import:
    """One imported module, as a dotted name from the top."""

    file: str
    line: int
    target: str
    for_types: bool

    @property
    def layer(self):
        """The layer of ours that is imported, None for a foreign module."""
        top, _, rest = self.target.partition(".")
        if top != "smsid_async":
            return None
        name = rest.partition(".")[0]
        return name if name in (*ORDER, ALONE) else "__init__"

    def __str__(self):
        return f"{self.file}:{self.line} imports {self.target}"


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def statements(tree, for_types=False):
    """Every node with whether it stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        yield node, for_types
        if is_type_checking(node):
            for inner in node.body:
                yield inner, True
                yield from statements(inner, True)
            for inner in node.orelse:
                yield inner, for_types
                yield from statements(inner, for_types)
        else:
            yield from statements(node, for_types)


def imports_of(source, file):
    """Every import of a file, relative ones resolved; `import_module` of a literal counts."""
    package = ["smsid_async", *Path(file).parent.parts]
    for node, for_types in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, for_types)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = base if base != ["smsid_async"] else [*base, alias.name]
                yield Import(file, node.lineno, ".".join(whole), for_types)
        elif file == "__init__.py":
            continue  # its lazy imports are what `test_exports` is about
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            assert isinstance(name, ast.Constant), (
                f"{file}:{node.lineno} imports by a computed name"
            )
            yield Import(file, node.lineno, name.value, for_types)


def environment_readers(source):
    """Lines that read or change the environment."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Attribute) and node.attr in names) or (
            isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names}
        ):
            yield node.lineno


SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.rglob("*.py")
}
IMPORTS = [each for file, source in SOURCES.items() for each in imports_of(source, file)]


def layer_of(file):
    first = Path(file).parts[0]
    return first.removesuffix(".py")


def offences(imports):
    """What is imported from a file that is not above."""
    for each in imports:
        here, there = layer_of(each.file), each.layer
        if there is None or here == there:
            continue
        if ALONE in (here, there) or "cli" in (here, there):
            if here != "cli":
                yield each
        elif not each.for_types and ORDER.index(there) >= ORDER.index(here):
            yield each


def foreign_offences(imports):
    """What is imported at run time from somewhere that the layer must not depend on."""
    for each in imports:
        top = each.target.partition(".")[0]
        allowed = FOREIGN.get(layer_of(each.file), FOREIGN_IN_CORE)
        if not each.for_types and top not in {*allowed, "smsid_async", *sys.stdlib_module_names}:
            yield each


def test_every_module_has_a_place_in_the_order():
    homeless = {layer_of(file) for file in SOURCES} - {*ORDER, ALONE}
    assert not homeless, (
        f"{', '.join(sorted(homeless))} has no place yet: put it into ORDER in {__file__}, "
        "below all that it imports"
    )


def test_every_place_in_the_order_is_taken():
    vacant = {*ORDER, ALONE} - {layer_of(file) for file in SOURCES}
    assert not vacant, f"ORDER names {', '.join(sorted(vacant))}, which is no longer there"


def test_a_file_imports_from_files_above_its_own_only():
    assert len(IMPORTS) > 100
    assert [str(each) for each in offences(IMPORTS)] == []


def test_nothing_foreign_is_imported_but_what_the_layer_may_depend_on():
    assert [str(each) for each in foreign_offences(IMPORTS)] == []


def test_only_the_settings_read_the_environment():
    readers = {file for file, source in SOURCES.items() if any(environment_readers(source))}
    assert readers == READS_ENVIRONMENT


# -- that the tests above can fail --------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "from smsid_async.models import Message"),
        ("errors.py", "from smsid_async import models"),
        ("errors.py", "from . import models"),
        ("errors.py", "from .models import Message"),
        ("errors.py", "import smsid_async.models as m"),
        ("errors.py", "def f():\n    from smsid_async.budget import RateBudget"),
        ("errors.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from smsid_async import budget"),
        ("_client.py", "from smsid_async import Message"),
        ("_client.py", "import smsid_async"),
        ("_client.py", "from smsid_async.cli import main"),
        ("_client.py", "from smsid_async.sandbox import Sandbox"),
        ("_client.py", "if TYPE_CHECKING:\n    from smsid_async.sandbox import Sandbox"),
        ("_client.py", "import importlib\nimportlib.import_module('smsid_async.bulk')"),
        ("sandbox/_app.py", "from smsid_async.models import Message"),
        ("sandbox/_app.py", "from ..models import Message"),
        ("sandbox/_app.py", "from smsid_async import __version__"),
        ("sandbox/_app.py", "from smsid_async.cli import main"),
    ],
)
def test_an_import_from_below_is_an_offence(file, source):
    assert list(offences(imports_of(source, file)))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models.py", "from smsid_async.errors import SMSIDError"),
        ("models.py", "from smsid_async import errors"),
        ("models.py", "from .errors import SMSIDError"),
        ("errors.py", "if TYPE_CHECKING:\n    from smsid_async.models import Message"),
        ("sandbox/_app.py", "from smsid_async.sandbox._state import State"),
        ("sandbox/_app.py", "from ._state import State"),
        ("sandbox/_app.py", "from . import _state"),
        ("cli/_app.py", "from smsid_async import SMSIDClient"),
        ("cli/_app.py", "from smsid_async.sandbox import Sandbox"),
        ("__init__.py", "from smsid_async.bulk import BulkJob"),
    ],
)
def test_an_import_from_above_is_none(file, source):
    assert not list(offences(imports_of(source, file)))


@pytest.mark.parametrize(
    ("file", "source", "offends"),
    [
        ("_http.py", "import httpx", False),
        ("_http.py", "import typer", True),
        ("_http.py", "def f():\n    import numpy.linalg", True),
        ("_http.py", "if TYPE_CHECKING:\n    import starlette", False),
        ("sandbox/_app.py", "import starlette.routing", False),
        ("sandbox/_app.py", "import httpx", True),
        ("cli/_app.py", "import typer, rich.table", False),
        ("cli/_app.py", "import starlette", True),
    ],
)
def test_a_foreign_import_is_an_offence_where_it_is_not_allowed(file, source, offends):
    assert bool(list(foreign_offences(imports_of(source, file)))) is offends


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ"]
)
def test_a_look_at_the_environment_is_noticed(source):
    assert list(environment_readers(source))
