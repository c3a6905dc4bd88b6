"""The network compiled by PyTorch: fewer and longer operations, and on CUDA one launch for all of them.

It is made of the network as it is trained, whose rotary embeddings are plain arithmetic that a compiler fuses, and not
of that of ``inference``, whose operations are chosen to be few without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from dust3r_ros.errors import ConfigError
from dust3r_ros.network.architecture import ModelSource, NetworkConfig
from dust3r_ros.network.inference import for_inference
from dust3r_ros.network.model import Dust3rNetwork, Pointmaps

Result = TypeVar("Result")


class CompiledNetwork:
    """``encode`` and ``decode`` of a network in eval mode, compiled at their first call with each shape.

    On CUDA they are recorded as graphs, which run without the processor; recording takes three calls. Both raise
    ConfigError where nothing can be compiled.
    """

    def __init__(self, model: Dust3rNetwork) -> None:
        self._model = model.eval().requires_grad_(False)
        # A graph's memory is its own and used again at every call; on a CPU matrices are laid out for its products.
        how: dict[str, Any] = (
            {"mode": "reduce-overhead"} if model.device.type == "cuda" else {"options": {"freezing": True}}
        )
        self._encode = torch.compile(model.encode, dynamic=False, **how)
        self._decode = torch.compile(model.decode, dynamic=False, **how)

    @property
    def config(self) -> NetworkConfig:
        """The architecture."""
        return self._model.config

    @property
    def source(self) -> ModelSource:
        """Where the weights come from."""
        return self._model.source

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the transformer blocks and of the tokens."""
        return self._model.dtype

    def encode(self, images: Tensor) -> Tensor:
        """As ``Dust3rNetwork.encode``."""
        self._model.prepare((images.shape[2], images.shape[3]))
        return self._run(self._encode, images).clone()  # the next call writes over what a graph gave

    def decode(
        self, tokens_i: Tensor, tokens_j: Tensor, size_i: tuple[int, int], size_j: tuple[int, int] | None = None
    ) -> Pointmaps:
        """As ``Dust3rNetwork.decode``. On CUDA the result holds until the next call of either method."""
        for size in (size_i, size_j or size_i):
            self._model.prepare(size)
        return self._run(self._decode, tokens_i, tokens_j, size_i, size_j or size_i)

    def _run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return function(*arguments)
        except TorchDynamoException as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(f"execution compiled cannot be used here: {reason}; eager needs no compiler") from error


def prepared_network(model: Dust3rNetwork, execution: str) -> Dust3rNetwork | CompiledNetwork:
    """A network in eval mode as it runs: ``eager`` or ``compiled``, see ``ReconstructorConfig.execution``."""
    return CompiledNetwork(model) if execution == "compiled" else for_inference(model)
