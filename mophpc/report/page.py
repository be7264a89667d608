"""The page: `page/*.html`, `*.css` and `*.js` and the data of a run, in one file.

It needs no network, and its policy forbids the browser to use one. Only the script that is in the
page as it was made may run: the policy names its digest. Data are in a block that is no script,
and the script puts them on the screen as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

SCRIPTS = (
    "data.js",
    "tools.js",
    "chart.js",
    "summary.js",
    "curves.js",
    "table.js",
    "parallel.js",
    "schedule.js",
    "drawing.js",
    "ranks.js",
    "expense.js",
    "main.js",
)
"""In this order; they are parts of one function."""

_TITLE_LENGTH = 120


def make_page(data: dict[str, Any]) -> str:
    """Return the page that shows `data`, which `page_data` made."""
    folder = files("mophpc.report") / "page"
    parts = [(folder / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = '\n"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    style = "\n" + (folder / "style.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = Template((folder / "page.html").read_text(encoding="utf-8"))
    return page.substitute(
        policy=escape(policy),
        title=escape(_plain(str(data["title"]))),
        style=style,
        script=script,
        data=json_block(data),
    )


def json_block(value: Any) -> str:
    """Return JSON that may stand between script tags: nothing in it can end the block."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _digest(text: str) -> str:
    sha = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(sha).decode('ascii')}'"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:_TITLE_LENGTH]
