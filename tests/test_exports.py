"""The public names: complete, sorted, and cheap to import."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import smsid_async
from smsid_async import errors, models, segments

# The names that programs are written against.
PROMISED = {
    "APIError",
    "AuthenticationError",
    "BadRequestError",
    "Balance",
    "BudgetTimeoutError",
    "BudgetUnavailableError",
    "ConfigurationError",
    "DeliveryStatus",
    "DeliveryTimeoutError",
    "DuplicateReferenceError",
    "InsufficientBalanceError",
    "InvalidResponseError",
    "Message",
    "MessageStatus",
    "NotSentError",
    "OTPReceipt",
    "OTPVerification",
    "OTPVerificationError",
    "OutcomeUnknownError",
    "Priority",
    "RateBudget",
    "RateLimitError",
    "RetryPolicy",
    "SMSIDClient",
    "SMSIDError",
    "Segments",
    "SendReceipt",
    "SendResult",
    "SenderNotApprovedError",
    "ServerError",
    "TransportError",
    "ValidationError",
    "count_segments",
}
# What one needs to annotate a program or to bring a budget of one's own.
ALSO_PUBLIC = {
    "Budget",
    "BudgetStatistics",
    "CallOptions",
    "JSONObject",
    "JSONValue",
    "Journal",
    "JournalUnavailableError",
    "OptionOverrides",
    "Outcome",
    "PollOptions",
    "SQLiteJournal",
    "SendMany",
    "Slot",
    "__version__",
}
EXTRAS = {
    "aiohttp",
    "asyncpg",
    "click",
    "fastapi",
    "hypothesis",
    "looptime",
    "opentelemetry",
    "phonenumbers",
    "psycopg",
    "pydantic",
    "pytest",
    "redis",
    "requests",
    "respx",
    "rich",
    "starlette",
    "typer",
    "uvicorn",
}
CORE = {"httpx", "tenacity", "attrs"}


def loaded_by(*names):
    """The modules that a fresh interpreter has loaded after importing these."""
    program = "\n".join([*(f"import {name}" for name in names), "import sys, json"])
    program += "\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(json.loads(run.stdout))


@pytest.fixture(scope="module")
def ours():
    """What our package adds to a bare interpreter."""
    return loaded_by("smsid_async") - loaded_by()


@pytest.fixture(scope="module")
def theirs():
    """What our requirements load by themselves; httpx tries click and rich, for its own command."""
    return loaded_by("httpx", "attrs", "tenacity", "anyio")


def tops(modules):
    return {module.partition(".")[0] for module in modules}


def installed_for(*names):
    """These distributions and all that they require, without extras, on this machine."""
    found, queue = set(), list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


def test_all_is_sorted_and_names_nothing_twice():
    assert smsid_async.__all__ == sorted(set(smsid_async.__all__))


def test_all_holds_what_is_promised_and_nothing_unexpected():
    assert set(smsid_async.__all__) == PROMISED | ALSO_PUBLIC


def test_every_name_in_all_can_be_imported():
    for name in smsid_async.__all__:
        assert getattr(smsid_async, name) is not None


def test_what_is_loaded_late_is_what_type_checkers_see_and_what_is_in_all():
    tree = ast.parse(Path(smsid_async.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("smsid_async.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    assert seen == smsid_async._HOMES
    assert set(seen) == set(smsid_async.__all__) - {"__version__"}


def test_dir_lists_the_public_names_and_nothing_private():
    assert set(smsid_async.__all__) <= set(dir(smsid_async))
    assert not [name for name in dir(smsid_async) if name.startswith("_") and name[1] != "_"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Telepathy'"):
        smsid_async.Telepathy  # noqa: B018


@pytest.mark.parametrize("module", [errors, models, segments], ids=lambda module: module.__name__)
def test_every_error_value_and_function_of_a_public_module_is_exported(module):
    for name in module.__all__:
        assert getattr(smsid_async, name) is getattr(module, name)
        assert name in smsid_async.__all__


def test_every_exported_class_and_function_is_documented():
    for name in smsid_async.__all__:
        value = getattr(smsid_async, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


@pytest.mark.parametrize(
    "name", [info.name for info in pkgutil.iter_modules(smsid_async.__path__) if not info.ispkg]
)
def test_all_of_every_module_is_true_and_names_nothing_twice(name):
    module = importlib.import_module(f"smsid_async.{name}")
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert [each for each in names if not hasattr(module, each)] == []


def test_the_version_is_that_of_the_distribution():
    assert smsid_async.__version__ == importlib.metadata.version("smsid-async")


def test_the_distribution_requires_the_core_and_nothing_else():
    requirements = map(Requirement, importlib.metadata.requires("smsid-async"))
    core = {each.name for each in requirements if "extra" not in str(each.marker)}
    assert core == CORE


def test_the_import_loads_no_extra(ours, theirs):
    assert "smsid_async" in ours
    assert tops(ours - theirs) & EXTRAS == set()


def test_the_import_loads_neither_the_sandbox_nor_the_command_line(ours):
    assert {module for module in ours if re.match(r"smsid_async\.(sandbox|cli)\b", module)} == set()


def test_the_import_loads_nothing_foreign_but_what_the_core_requires(ours, theirs):
    distributions = importlib.metadata.packages_distributions()
    allowed = {
        top
        for top, owners in distributions.items()
        if installed_for(*CORE) & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
    }
    foreign = tops(ours - theirs) - set(sys.stdlib_module_names) - {"smsid_async"}
    assert foreign <= allowed


def test_the_import_is_silent_even_when_warnings_are_errors():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import smsid_async"],
        capture_output=True,
        check=True,
    )
    assert (run.stdout, run.stderr) == (b"", b"")


def test_sqlite_is_loaded_by_its_first_use_only():
    names = "SMSIDClient, SQLiteJournal"
    code = f"import sys; from smsid_async import {names}; print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
