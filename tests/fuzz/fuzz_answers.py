"""Fuzzes the decoding of answers: `pip install atheris`, then `python tests/fuzz/fuzz_answers.py`.

An atheris target, for Python 3.11 or newer where atheris has a wheel. It starts from the
inputs in `corpus/`, makes 60 seconds of mutations of them (`-max_total_time=SECONDS` for
others; every option of libFuzzer works), and stops at the first that ends as none may,
which it leaves in the current directory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
TARGETS = ["_envelope", "models", "_verdict", "_retry"]

sys.path.insert(0, str(HERE.parent))
with atheris.instrument_imports(include=[f"smsid_async.{name}" for name in TARGETS]):
    from hostile import one_input


def main() -> None:
    """Run libFuzzer on a corpus of its own, beside the one that is kept."""
    with tempfile.TemporaryDirectory() as found:
        defaults = ["-max_total_time=60", f"-dict={HERE / 'answers.dict'}"]
        corpora = [found, str(HERE / "corpus")]
        atheris.Setup([sys.argv[0], *defaults, *sys.argv[1:], *corpora], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
