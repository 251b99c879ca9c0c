"""The console's style sheet, put into every page: it is small, and so a page without a session needs no file of ours."""

from __future__ import annotations

from pathlib import Path

__all__ = ["STYLE"]

STYLE = Path(__file__).with_name("console.css").read_text(encoding="utf-8")
