"""The console's style sheet, put into every page: it is small, and so a page without a session needs no file of ours."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ICON", "STYLE"]

STYLE = Path(__file__).with_name("console.css").read_text(encoding="utf-8")

ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect x='12' y='1' width='8' height='30' rx='4' "
    "transform='rotate(45 16 16)' fill='#3f7ff0'/></svg>"
)
"""A baton, for the browser's tab."""
