"""Full-parameter recovery by distillation from the dense model, under the mask.

The student's weights are trained in float32 masters, whatever the model computes in; the model sees them
rounded to its own dtype, so what is trained is what is written. Gradients of pruned weights are
dropped and the zeros are set again after each update, so they stay exact.
(Hinton et al. 2015, arXiv 1503.02531.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from compression.evaluation import stock
from compression.recovery.names import file_names, tensor_names
from compression.recovery.registry import TrainingOptions, recoveries
from compression.recovery.run import check_loss, train, width
from compression.recovery.types import RecoveryContext, RecoveryResult


class DistillationOptions(TrainingOptions):
    """Options of full-parameter recovery."""


class FullWeights:
    """Every parameter that the files hold, as a float32 master, with its mask."""

    def __init__(self, model: nn.Module, files: Mapping[str, list[str]], masks: Mapping[str, Tensor]) -> None:
        self.files = files
        self.masters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._masks: dict[str, Tensor] = {}
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name not in files:
                continue
            parameter.requires_grad_(True)
            self._parameters[name] = parameter
            self.masters[name] = parameter.detach().to(torch.float32, copy=True)
            mask = next((masks[file] for file in files[name] if file in masks), None)
            if mask is not None:
                self._masks[name] = mask.to(parameter.device)

    def train(self, on: bool) -> None:
        """Nothing of the model changes by being looked at: dropout stays off."""

    def gather(self) -> None:
        """Move gradients onto the masters in float32, zero where the mask removes."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            parameter.grad = None
            if gradient is None:
                continue
            value = gradient.float()
            if name in self._masks:
                value = torch.where(self._masks[name], value, 0.0)
            self.masters[name].grad = value

    def publish(self) -> None:
        """Copy the masters into the model, rounded to its dtype, zeros set again."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if name in self._masks:
                    self.masters[name].masked_fill_(~self._masks[name], 0.0)
                parameter.copy_(self.masters[name])

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor by each name it has in the files, in the model's dtype."""
        for name, parameter in self._parameters.items():
            for file in self.files[name]:
                yield file, parameter.detach().clone()


@recoveries.register
class Distillation:
    """Trains all parameters towards the dense model's outputs."""

    name = "distillation"
    title = "Distillation from the dense model"
    summary = (
        "Trains every parameter that is left so that the outputs follow the dense model's "
        "(logits; hidden states for encoders without a head). Pruned weights stay zero."
    )
    options: type[BaseModel] = DistillationOptions

    def recover(self, context: RecoveryContext) -> RecoveryResult:
        """Raises RecoveryImpossible, pydantic.ValidationError (options)."""
        options = DistillationOptions.model_validate(dict(context.options))
        check_loss(options, context)
        model = stock.load(context.pruned, context.task, device=context.device)
        files = file_names(model, tensor_names(context.pruned))
        trained = FullWeights(model, files, context.masks)
        return train(context, options, model, trained, default_rate(width(model)))


def default_rate(hidden: int) -> float:
    """Peak learning rate for a model of this hidden width: 4e-4 at 256, 2.4e-5 at 4096.

    Falls with the width, as steps of the same size in each weight add up over the inputs (Yang et al. 2022,
    arXiv 2203.03466).
    """
    return 0.1 / hidden
