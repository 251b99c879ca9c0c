"""Arms of an endpoint whose fields differ: both read requests that have the fields of both.

Stable's fields are asked of a caller as they were before there was a candidate; those of the candidate alone may be left out.
Arms with the same fields are left as they are and cost nothing.
"""

from __future__ import annotations

from pipeline.schema import Schema
from serving.lane.served import Key, Served
from serving.wire.inference import InferCodec
from serving.wire.ranking import RankCodec

__all__ = ["JoinedArms"]


class JoinedArms:
    """Served versions as they read requests with the fields of both arms, each made once. For one thread at a time.

    Their codecs remember what callers send, so they are kept as long as they are in use.
    """

    def __init__(self) -> None:
        self._codecs: dict[tuple[Schema, frozenset[str]], tuple[RankCodec, InferCodec]] = {}
        self._known: dict[tuple[str, Key], Served] = {}
        self._in_use: dict[tuple[str, Key], Served] = {}

    def arm(self, endpoint: str, served: Served, stable: Schema, candidate: Schema) -> Served:
        """A version as an arm of an endpoint. The schemas of both arms match (`Schema.inputs_match`)."""
        inputs, optional = stable.joined(candidate), frozenset(candidate.fields_beside(stable))
        if not optional and inputs.columns == served.model.schema.columns:
            return served
        known = self._known.get((endpoint, served.key))
        if known is None or known.model.inputs != inputs or known.rank.optional != optional:
            codecs = self._codecs_of(inputs, optional, served.rank.max_candidates)
            known = Served(served.model.reading(inputs), *codecs)
        self._in_use[endpoint, served.key] = known
        return known

    def forget(self) -> None:
        """Forget what was not asked for since the last call."""
        self._known, self._in_use = self._in_use, {}
        used = {id(served.rank) for served in self._known.values()}
        self._codecs = {key: codecs for key, codecs in self._codecs.items() if id(codecs[0]) in used}

    def _codecs_of(self, inputs: Schema, optional: frozenset[str], max_candidates: int) -> tuple[RankCodec, InferCodec]:
        codecs = self._codecs.get((inputs, optional))
        if codecs is None:
            codecs = RankCodec(inputs, max_candidates, optional), InferCodec(inputs, max_candidates, optional)
            self._codecs[inputs, optional] = codecs
        return codecs
