"""Reports of processes on a disk that takes none: they go to memory, and back once there is room."""

from __future__ import annotations

from pathlib import Path

from namespaces import in_namespace

PROGRAM = Path(__file__).with_name("report_on_a_full_disk.py")


def test_a_process_reports_while_its_disk_is_full(tmp_path: Path) -> None:
    said = in_namespace(tmp_path, PROGRAM, tmp_path).splitlines()
    assert said == ["2 2 True True", "3 1 True"]
