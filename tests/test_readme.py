"""The README keeps its word: its example runs, its commands and its table are right."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import smsid_async
from smsid_async import SMSIDError
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


async def test_the_first_example_runs_and_stands_by_line_30(tmp_path: Path) -> None:
    assert README[: README.index(BLOCKS[0]) + len(BLOCKS[0])].count("\n") <= 30
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[0], encoding="utf-8")
    async with Sandbox() as sandbox:
        environment = {"SMSID_API_KEY": "test", "SMSID_BASE_URL": sandbox.url}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), env=environment, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert output.decode().split() == [sandbox.messages[0].message_id, "0.0400", "99.9600"]


def test_every_example_is_python() -> None:
    for block in BLOCKS:
        indented = "\n".join(f"    {line}" for line in block.splitlines())
        compile(f"async def example():\n{indented}\n", "README.md", "exec")


def test_the_two_commands_stand_there() -> None:
    assert "pip install -e '.[all]' && smsid demo\n" in README
    assert "pip install -e '.[dev]' && pytest\n" in README


def concrete(kind: type[SMSIDError]) -> Iterator[type[SMSIDError]]:
    for child in kind.__subclasses__():
        if child.__module__ == "smsid_async.errors":
            yield child
            yield from concrete(child)


def test_the_table_names_every_error_that_this_version_raises() -> None:
    table = README[README.index("| error | `maybe_sent` |") :]
    later = {"APIError"}
    for kind in concrete(SMSIDError):
        assert (f"`{kind.__name__}`" in table) != (kind.__name__ in later), kind


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (Path(__file__).parent.parent / link).exists(), link


def test_every_option_of_the_constructor_is_in_its_docstring() -> None:
    text = inspect.getdoc(smsid_async.SMSIDClient)
    assert text is not None
    for name in inspect.signature(smsid_async.SMSIDClient).parameters:
        assert f"\n    {name}: " in text
