"""Live HTML elements: `tell` sets their content, and only changes are sent to the browser.

They are plain HTML: a table is a `<table>`, a definition list a `<dl>`, so that screen readers and phones can use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

__all__ = ["Cell", "Chart", "Facts", "LiveTable", "Text", "element", "panel", "put", "show"]


class Text(TextElement):
    """Text in its own HTML tag."""

    def __init__(self, text: str = "", tag: str = "span", classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)
        self._kept = classes

    def tell(self, text: str, tone: str = "") -> None:
        """Show a text; `tone`: a class in addition to the element's own."""
        self.text = text
        self.classes(replace=f"{self._kept} {tone}")


def element(tag: str, classes: str = "", **attributes: str) -> Element:
    """HTML element; underscores in attribute names become hyphens."""
    made = ui.element(tag).classes(classes)
    for name, value in attributes.items():
        made.props[name.replace("_", "-")] = value
    return made


def put(part: Element, name: str, value: str) -> None:
    """Set an attribute."""
    if part.props.get(name) != value:
        part.props[name] = value


def show(part: Element, visible: bool) -> None:
    """Show or hide an element; hidden, it takes no space and no focus."""
    if part.visible != visible:
        part.set_visibility(visible)


def panel(title: str, note: str = "", classes: str = "") -> Element:
    """Section with a heading, entered by `with`."""
    section = element("section", f"panel {classes}", aria_label=title)
    with section, element("header"):
        Text(title, "h2")
        if note:
            Text(note, "p", "note")
    return section


@dataclass(frozen=True, slots=True)
class Cell:
    """Cell of a table: its text, a class for its tone, and an address if it is a link."""

    text: str
    tone: str = ""
    href: str = ""


class LiveTable:
    """Table whose rows are added and removed at the end; cells are changed in place.

    Args:
        columns: headings; `>` in front marks a column of numbers, aligned to the right.
        caption: description for screen readers.
        empty: text where there is no row.
        classes: "cards" shows each row as a card on a narrow screen.
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
                shown = cell if isinstance(cell, Cell) else Cell(cell)
                text.tell(shown.text, shown.tone)

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
    """Names with their values, as a definition list."""

    def __init__(self) -> None:
        self._values: dict[str, Text] = {}
        self.element = element("dl", "facts")

    def tell(self, values: Mapping[str, Cell | str]) -> None:
        """Show these values; a name that is new gets a line at the end."""
        for name, value in values.items():
            if name not in self._values:
                with self.element, element("div"):
                    Text(name, "dt")
                    self._values[name] = Text(tag="dd")
            shown = value if isinstance(value, Cell) else Cell(value)
            self._values[name].tell(shown.text, shown.tone)


class Chart:
    """ECharts chart that is drawn again only when its data changed.

    Args:
        title: description for screen readers.
        options: makes the ECharts options from the data.
    """

    def __init__(self, title: str, options: Callable[[Any], dict[str, Any]], classes: str = "") -> None:
        self._options, self._shown = options, None
        self.element = ui.echart(options(None), renderer="svg").classes(f"chart {classes}")
        self.element.props["role"] = "img"
        self.element.props["aria-label"] = title

    def tell(self, data: Any) -> None:
        """Show data; unchanged data is not sent."""
        if data == self._shown:
            return
        self._shown = data
        self.element.options.clear()
        self.element.options.update(self._options(data))
        self.element.update()
