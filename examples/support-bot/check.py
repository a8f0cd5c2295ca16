"""Asks a served model the facts it was tuned on, in a phrasing that it was never trained on, and counts exact answers.

    python3 check.py test.jsonl --url http://127.0.0.1:30080 --host support-bot.example.com --min 0.8

Rows are of format Messages (a user's question, the assistant's answer). Ends with 0 where the share reaches --min, with 1 where it
does not. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. `host` is sent as Host header, for a gateway that routes by name."""

    url: str
    model: str
    host: str | None = None
    timeout_s: float = 60

    def ask(self, question: str) -> str:
        """The model's answer, greedy. Errors: SystemExit where the server does not answer."""
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
        headers = {"Content-Type": "application/json"} | ({"Host": self.host} if self.host else {})
        request = urllib.request.Request(f"{self.url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])
        except (urllib.error.URLError, TimeoutError) as error:
            raise SystemExit(f"{self.url} does not answer: {error}; see kubectl get modelversions") from error


def read_facts(lines: Iterable[str]) -> list[tuple[str, str]]:
    """`(question, answer)` of each row."""
    rows = [json.loads(line)["messages"] for line in lines if line.strip()]
    return [(row[-2]["content"], row[-1]["content"]) for row in rows]


def count_exact(facts: Iterable[tuple[str, str]], ask: Callable[[str], str]) -> int:
    """Facts answered word for word (surrounding space and Unicode form apart)."""
    return sum(_plain(ask(question)) == _plain(answer) for question, answer in facts)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=argparse.FileType(encoding="utf-8"), help="facts as JSON lines; - reads standard input")
    parser.add_argument("--url", required=True, help="server or gateway, without /v1")
    parser.add_argument("--host", help="Host header. Default: that of the URL")
    parser.add_argument("--model", default="support-bot", help="model name in requests. Default: %(default)s")
    parser.add_argument("--min", type=float, default=0.8, help="share that must be reached. Default: %(default)s")
    options = parser.parse_args()
    facts = read_facts(options.facts)
    if not facts:
        raise SystemExit("no facts to ask; expected JSON lines of format Messages")
    exact = count_exact(facts, Endpoint(options.url, options.model, options.host).ask)
    share = exact / len(facts)
    print(f"exact match {share:.3f} ({exact} of {len(facts)}), at least {options.min} expected")
    return 0 if share >= options.min else 1


if __name__ == "__main__":
    sys.exit(main())
