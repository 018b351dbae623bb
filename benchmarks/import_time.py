"""How long `import smsid_async` takes beside `import httpx`, in alternating fresh processes.

python benchmarks/import_time.py [--runs 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

EXTRAS = ("typer", "rich", "starlette", "uvicorn", "redis", "fastapi", "aiohttp", "opentelemetry")

ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


def seconds(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=ENVIRONMENT)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    statements = ("import httpx", "import smsid_async", "from smsid_async import SMSIDClient")
    for statement in statements:  # writes the bytecode
        seconds(statement)
    rounds = [[seconds(statement) for statement in statements] for _ in range(runs)]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    print(f"medians of {runs} alternating runs")
    for statement, median in zip(statements, medians, strict=True):
        print(f"{statement:42}{median * 1000:7.1f} ms {median / medians[0]:6.2f} of httpx")
    script = f"import sys, smsid_async; print([m for m in {EXTRAS} if m in sys.modules])"
    extras = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(f"extras imported by smsid_async: {extras}")


if __name__ == "__main__":
    main()
