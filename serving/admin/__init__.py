"""What an operator can ask and do. One table of verbs, one door (`Admin.call`); gRPC, REST, the command line and the
console are shells over it.

Read first: `verbs` (the table), `door`; then a file per service. `requests` and `answers` are the shapes.
"""

from serving.admin.door import Admin
from serving.admin.verbs import VERBS, Verb

__all__ = ["VERBS", "Admin", "Verb"]
