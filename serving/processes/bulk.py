"""Process that makes one bulk answer, an export or a backup, and writes it to its standard output.

The control process starts it for a caller elsewhere (`serving.admin.bulk`): so neither its memory nor its time depend on how
large the answer is, and a caller that leaves ends it. The request is a JSON object on standard input; an error is one on
standard error, with the class and the message.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import uuid
from pathlib import Path
from typing import IO, Any

import yaml

from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from serving.config import Config
from serving.runtime.process import die_with_parent, private_files

__all__ = ["backup_tar", "run_bulk"]

FOLDER = Path("run") / "bulk"
"""Beneath the home: where a backup is put together, on the disk of what it links to."""


def run_bulk() -> int:
    """Make the answer that standard input asks for; the exit code."""
    die_with_parent()
    private_files()
    request: dict[str, Any] = json.load(sys.stdin)
    config = Config.model_validate(request["config"])
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else gets between the bytes
    try:
        if request["what"] == "backup":
            backup_tar(config, request["config"], out)
        else:
            from serving.wiring.export import export_log

            export_log(config, out, **request["fields"])
        out.close()
    except BrokenPipeError:
        return 1  # who asked has left
    except BatonError as error:
        fault = {"kind": type(error).__name__, "message": str(error), "field": getattr(error, "field", "")}
        sys.stderr.write(json.dumps(fault) + "\n")
        return 1
    return 0


def backup_tar(config: Config, settings: dict[str, Any], out: IO[bytes]) -> None:
    """Write a backup as a tar archive; its list of files is the last in it, so a torn archive is no backup.

    Args:
        settings: the configuration as the control process has it, which becomes that of the backup.
    """
    from serving.wiring.backup import CONFIG, MANIFEST, back_up

    shutil.rmtree(config.home / FOLDER, ignore_errors=True)  # of one that was killed
    place = config.home / FOLDER / uuid.uuid4().hex
    try:
        place.mkdir(parents=True, mode=0o700)
        named = place / CONFIG
        named.write_text(yaml.safe_dump(settings, sort_keys=False))
        back_up(config, named, place / "backup", SystemClock())
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            files = [path for path in sorted((place / "backup").rglob("*")) if path.is_file() and path.name != MANIFEST]
            for path in [*files, place / "backup" / MANIFEST]:
                archive.add(path, str(path.relative_to(place / "backup")), recursive=False)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run_bulk())
