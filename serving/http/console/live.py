"""Elements that are told what they should show, as often as one likes, and send the browser only what changed.

Plain HTML: a table is a `<table>`, a definition a `<dl>`, so that a screen reader and a phone know what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

__all__ = ["Cell", "Chart", "Facts", "LiveTable", "Text", "element", "panel", "put", "show"]


class Text(TextElement):
    """A text in an HTML tag of its own."""

    def __init__(self, text: str = "", tag: str = "span", classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)
        self._kept = classes

    def tell(self, text: str, tone: str = "") -> None:
        """Show a text; `tone`: a class on top of those that it was made with."""
        self.text = text
        self.classes(replace=f"{self._kept} {tone}")


def element(tag: str, classes: str = "", **attributes: str) -> Element:
    """An HTML element; underscores in names of attributes stand for hyphens."""
    made = ui.element(tag).classes(classes)
    for name, value in attributes.items():
        made.props[name.replace("_", "-")] = value
    return made


def put(part: Element, name: str, value: str) -> None:
    """Set an attribute."""
    if part.props.get(name) != value:
        part.props[name] = value


def show(part: Element, visible: bool) -> None:
    """Show or hide; hidden it takes no room and no focus."""
    if part.visible != visible:
        part.set_visibility(visible)


def panel(title: str, note: str = "", classes: str = "") -> Element:
    """A section with a heading, entered by `with`."""
    section = element("section", f"panel {classes}", aria_label=title)
    with section, element("header"):
        Text(title, "h2")
        if note:
            Text(note, "p", "note")
    return section


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text, a class for its tone, and an address if it is a link."""

    text: str
    tone: str = ""
    href: str = ""


class LiveTable:
    """A table whose rows come and go at the end; cells are changed in place.

    Args:
        columns: headings; one that begins with `>` is of numbers, which stand at the right.
        caption: what it is, for those who do not see it.
        empty: said where there is no row.
        classes: "cards" has each row stand as a card where the screen is narrow.
    """

    def __init__(self, columns: Sequence[str], caption: str, empty: str = "nothing yet", classes: str = "") -> None:
        self._names = [name.lstrip(">") for name in columns]
        self._numbers = [name.startswith(">") for name in columns]
        self._rows: list[tuple[Element, list[Text]]] = []
        with element("div", f"scroll {classes}", tabindex="0", role="region", aria_label=caption) as self.element:
            with element("table"):
                Text(caption, "caption", "unseen")
                with element("thead"), element("tr"):
                    for name, number in zip(self._names, self._numbers, strict=True):
                        Text(name, "th", "number" if number else "").props("scope=col")
                self._body = element("tbody")
            self._empty = Text(empty, "p", "note")

    def tell(self, rows: Sequence[Sequence[Cell | str]]) -> None:
        """Show these rows."""
        show(self._empty, not rows)
        for line, _ in self._rows[len(rows) :]:
            line.delete()
        del self._rows[len(rows) :]
        for at, row in enumerate(rows):
            if at == len(self._rows):
                self._rows.append(self._line(row))
            for text, cell in zip(self._rows[at][1], row, strict=True):
                told = cell if isinstance(cell, Cell) else Cell(cell)
                text.tell(told.text, told.tone)

    def _line(self, row: Sequence[Cell | str]) -> tuple[Element, list[Text]]:
        with self._body, element("tr") as line:
            texts = []
            for name, number, cell in zip(self._names, self._numbers, row, strict=True):
                if isinstance(cell, Cell) and cell.href:
                    with element("td", data_label=name):
                        texts.append(Text(tag="a"))
                        texts[-1].props["href"] = cell.href
                else:
                    texts.append(Text(tag="td", classes="number" if number else ""))
                    texts[-1].props["data-label"] = name
        return line, texts


class Facts:
    """Names and what stands for them, as a definition list."""

    def __init__(self, *names: str) -> None:
        self._values: dict[str, Text] = {}
        with element("dl", "facts") as self.element:
            for name in names:
                with element("div"):
                    Text(name, "dt")
                    self._values[name] = Text(tag="dd")

    def tell(self, name: str, text: str, tone: str = "") -> None:
        """Show a value."""
        self._values[name].tell(text, tone)


class Chart:
    """An ECharts chart that is drawn anew only when its options changed.

    Args:
        title: what it shows, for those who do not see it.
        options: makes ECharts' options of what is to be shown.
    """

    def __init__(self, title: str, options: Callable[[Any], dict[str, Any]], classes: str = "") -> None:
        self._options, self._shown = options, None
        self.element = ui.echart(options(None), renderer="svg").classes(f"chart {classes}")
        self.element.props["role"] = "img"
        self.element.props["aria-label"] = title

    def tell(self, data: Any) -> None:
        """Show data; nothing is sent where it equals what is shown."""
        if data == self._shown:
            return
        self._shown = data
        self.element.options.clear()
        self.element.options.update(self._options(data))
        self.element.update()
