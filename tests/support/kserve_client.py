"""Client of a server through kserve's gRPC client: `kserve_client.py TARGET INPUTS.npz OUTPUT.npz`.

A program of its own, since kserve and tritonclient describe the same protocol and cannot be imported into one process.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient

TYPES = {"int64": "INT64", "float32": "FP32"}


async def main(target: str, inputs: str, output: str) -> None:
    tensors = np.load(inputs)
    scores = {}
    client = InferenceGRPCClient(target)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("ranker")
    for way in ("raw", "typed"):
        request = []
        for name in tensors.files:
            values = tensors[name]
            tensor = InferInput(name, list(values.shape), TYPES[values.dtype.name])
            tensor.set_data_from_numpy(values, binary_data=way == "raw")
            request.append(tensor)
        response = await client.infer(InferRequest("ranker", request))
        scores[way] = response.outputs[0].as_numpy()
    await client.close()
    np.savez(output, **scores)


asyncio.run(main(*sys.argv[1:]))
