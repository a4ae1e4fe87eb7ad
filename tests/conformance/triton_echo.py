"""A model for Triton's Python backend that answers with what it was given, as one JSON object."""

import json

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """What the Python backend runs."""

    def initialize(self, args):
        """Notes the names of the inputs."""
        config = json.loads(args["model_config"])
        self._inputs = [entry["name"] for entry in config["input"]]
        self._batched = config["max_batch_size"] > 0

    def execute(self, requests):
        """Sends the inputs of each request back, and its end with them."""
        for request in requests:
            text = json.dumps(self._given(request), sort_keys=True).encode()
            answer = [[text]] if self._batched else [text]
            tensor = triton.Tensor("text_output", np.array(answer, dtype=np.object_))
            sender = request.get_response_sender()
            sender.send(
                triton.InferenceResponse(output_tensors=[tensor]),
                triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )

    def _given(self, request):
        given = {}
        for name in self._inputs:
            tensor = triton.get_input_tensor_by_name(request, name)
            if tensor is not None:
                values = tensor.as_numpy()
                plain = [
                    v.decode() if isinstance(v, bytes) else v for v in values.flatten().tolist()
                ]
                given[name] = {"shape": list(values.shape), "values": plain}
        return given
