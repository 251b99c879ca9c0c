"""Admin verbs: all that an operator can read and change. One table of verbs, one entry point (`Admin.call`); gRPC, REST,
the command line and the console are shells over it.

Read first: `verbs` (the table), `door`; then a file per service. `requests` and `answers` are the messages.
"""

from serving.admin.door import Admin
from serving.admin.verbs import VERBS, Verb

__all__ = ["VERBS", "Admin", "Verb"]
