"""Names: a numeric constant ends in its unit, and private words of old have not come back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "serving", "transfer")

EXEMPT = {"_I8", "_I32", "_I64"}
"""Types of LLVM, which are made with a number of bits."""
UNITS = {"S", "MS", "US", "HOURS", "BYTES", "BITS", "WORDS", "PERCENT", "RADIANS"}
COUNTED = {
    *(
        "ALARMS",
        "ARRANGEMENTS",
        "BATCHES",
        "BINS",
        "BLOCKS",
        "BUCKETS",
        "BRANDS",
        "CALLERS",
        "CALLS",
        "CATEGORIES",
        "CHANGES",
        "CHECKPOINTS",
        "CHUNKS",
        "CLICKS",
        "COLUMNS",
        "CONNECTIONS",
        "COUNTERS",
        "DESCRIPTORS",
        "LAYERS",
        "LETTERS",
        "MESSAGES",
        "PAGES",
        "PORTS",
        "SOCKETS",
        "SPARES",
        "STREAMS",
    ),
    *("COUNTS", "DEVIATIONS", "ENTRIES", "GROUPS", "IDS", "KEYS", "LAYOUTS", "LOOKUPS", "MARKS", "MEMBERS", "PILOTS"),
    *("POINTS", "PORTIONS", "POSITIVES", "PREDICTIONS", "PROBES", "REPLICAS", "REQUESTS", "ROLLOUTS", "ROUNDS", "ROWS"),
    *(
        "RUNS",
        "SAMPLES",
        "SEGMENTS",
        "SESSIONS",
        "SIZES",
        "TAGS",
        "TALLIES",
        "TASTES",
        "TENTHS",
        "THREADS",
        "TICKS",
        "TOKENS",
        "TRIES",
        "TURNS",
    ),
    *("VALUES", "VERSIONS", "UNITS", "WATCHERS", "WAYS"),
}
PLAIN = {
    *(
        "BUCKET",
        "BYTE",
        "CODE",
        "COUNT",
        "DEVIATION",
        "FACTOR",
        "FACTORS",
        "FIELD",
        "FLAG",
        "FRACTION",
        "ID",
        "INDEX",
        "LANE",
        "LOGIT",
        "MASK",
    ),
    *(
        "MULTIPLIER",
        "MULTIPLIERS",
        "NICE",
        "OPTION",
        "POSITION",
        "PROBABILITY",
        "RATIO",
        "ROW",
        "SEED",
        "STATUS",
        "TYPE",
    ),
    *("U64", "VERSION", "WEIGHT", "WIDTH", "WORD"),
}


def numeric(value: ast.expr) -> bool:
    match value:
        case ast.Constant(value=number):
            return isinstance(number, int | float) and not isinstance(number, bool)
        case ast.BinOp(left=left, right=right):
            return numeric(left) or numeric(right)
        case ast.UnaryOp(operand=operand):
            return numeric(operand)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return bool(elements) and all(map(numeric, elements))
        case ast.Call(args=arguments):
            return bool(arguments) and all(map(numeric, arguments))
    return False


def constants(tree: ast.Module) -> Iterator[str]:
    """Names of numeric constants of a module, those of `A, B = 1, 2` included."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
                pairs = (
                    zip(target.elts, value.elts, strict=True)
                    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                    else [(target, value)]
                )
                for name, number in pairs:
                    if isinstance(name, ast.Name) and name.id.isupper() and numeric(number):
                        yield name.id


@pytest.mark.parametrize("package", PACKAGES)
def test_a_numeric_constant_ends_in_its_unit(package: str) -> None:
    known = UNITS | COUNTED | PLAIN
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in constants(ast.parse(path.read_text()))
        if name not in EXEMPT and name.rsplit("_", 1)[-1] not in known
    ]
    assert not wrong, "end the name in its unit, in what it counts, or in one of the words of this test:\n" + "\n".join(
        wrong
    )


def test_private_words_have_not_come_back() -> None:
    """docs/glossary.md has the words of the field that stand in their place."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    classes = {
        node.name for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    }
    assert not classes & {"Doorkeeper", "Lookout", "Once", "Room", "Line", "Steering", "Sightings", "Drawn", "Halves"}
    assert not {path.stem for path in files} & {"doorkeeper", "once", "room", "paired", "handoff", "told", "said"}
