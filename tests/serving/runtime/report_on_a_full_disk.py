"""Program of `test_reports`: a status on a disk without room, in a mount namespace of its own."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from pipeline.disk import refused_writes
from serving.runtime import status
from serving.runtime.status import ShadowStatus
from serving.runtime.stores import disks
from serving.telemetry import Telemetry, merged

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "t", disk], check=True)
folder = disk / "home" / "run" / "status"
status.write(folder, "shadow", ShadowStatus(time_ms=1, scored=1))
with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
    while True:
        ballast.write(b"0" * 512)
status.write(folder, "shadow", ShadowStatus(time_ms=2, scored=2))
Telemetry("shadow").write(disk / "figures")
(store,) = disks({"home": disk})
print(
    status.read(folder, 2).shadow.status.scored,
    refused_writes()["full"],
    store.full,
    b"baton_disk_refused" in merged(disk / "figures"),
)
(disk / "ballast").unlink()
status.write(folder, "shadow", ShadowStatus(time_ms=3, scored=3))
print(status.read(folder, 3).shadow.status.scored, len(list(folder.glob("*.json"))), os.environ["HOME"] != "")
