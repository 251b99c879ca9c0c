"""A team's nightly retraining: a log as files, a model trained on it, and what a scheduler hands over each night."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.bundle.bundle import Bundle, BundleWriter, Calibration
from transfer.bundles.publish import save
from transfer.data import open_log
from transfer.offline.train import train

USERS, ITEMS = 40, 30


def write_log(folder: Path, rows: int = 6000, *, label: bool = True) -> Path:
    """A log with clicks that depend on user, item and price; the path of its dataset.yaml."""
    rng = np.random.default_rng(5)
    user, item = rng.integers(0, USERS, rows // 4).repeat(4), rng.integers(0, ITEMS, rows)
    price = rng.normal(size=rows)
    taste, charm = rng.normal(size=USERS), rng.normal(size=ITEMS)
    click = rng.random(rows) < 1 / (1 + np.exp(1.2 - 0.8 * taste[user] - 0.8 * charm[item] - 0.3 * price))
    lines = ["time,request,user,item,price,tags,click"]
    lines += [
        f"{1_700_000_000 + n // 4},r{n // 4},u{user[n]},i{item[n]},{price[n]:.3f},a|b{item[n] % 3},{click[n]:d}"
        for n in range(rows)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    path = folder / "dataset.yaml"
    path.write_text(
        "name: nightly\nfiles: [log.csv]\ntime: {column: time, unit: s}\nlabel: {column: click, positive: [1], negative: [0]}\n"
        "request: request\nrouting_key: user\nfields:\n  - {name: user, role: context}\n  - {name: item, role: candidate}\n"
        "  - {name: price, role: candidate, kind: number}\n  - {name: tags, role: candidate, kind: bag, separator: '|'}\n"
    )
    return path


def train_once(data: Path, target: Path, name: str = "nightly") -> Bundle:
    """A model of the first 80 % of a log."""
    return save(train(open_log(data, data.parent / "cache"), "lr", width=4, stop=0.8, seed=1), target, name)


def another(bundle: Bundle, target: Path, *, beta: float = 0.0, alpha: float = 1.0) -> Path:
    """A copy of a bundle as training makes it: version 1 of its name, with another calibration."""
    own = bundle.manifest.calibration
    changed = Calibration(alpha=own.alpha * alpha, beta=own.beta + beta)
    with BundleWriter(target) as writer:
        for name in bundle.manifest.files:
            writer.path(name).write_bytes(bundle.file(name).read_bytes())
        return writer.finish(bundle.manifest.model_copy(update={"calibration": changed})).path


def spoil(folder: Path, name: str = "dense.onnx", *, by: Callable[[bytes], bytes] | None = None) -> Path:
    """Change a file of a bundle: one bit, or as told."""
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(by((folder / name).read_bytes()) if by else bytes(content))
    return folder
