"""`curl`, as far as the examples use it, so that they run where there is none. Refuses words that it does not know."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import httpx


def main() -> None:
    words = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    words.add_argument("url")
    words.add_argument("-s", action="store_true", help="says nothing beside the answer, which this never does")
    words.add_argument("-X", dest="method")
    words.add_argument("-H", dest="headers", action="append", default=[])
    words.add_argument("-d", dest="body")
    asked = words.parse_args()
    body = Path(asked.body[1:]).read_text() if asked.body and asked.body.startswith("@") else asked.body
    headers = dict(header.split(": ", 1) for header in asked.headers)
    method = asked.method or ("GET" if body is None else "POST")
    answer = httpx.request(method, asked.url, headers=headers, content=body, timeout=60, trust_env=False)
    sys.stdout.write(answer.text)


if __name__ == "__main__":
    main()
