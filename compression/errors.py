"""What can go wrong in the engine, as classes that name the fact. No torch.

    CompressionError
      ModelRejected                 an uploaded model cannot be taken in
        PickleRefused               a file that would be unpickled (.bin .pt .pth ...), by content
        FileRefused                 a file with a bad name, of an unknown kind or too large
        SafetensorsInvalid          a safetensors file or its shard index is malformed
        OnnxInvalid                 an ONNX file is malformed or contradicts itself
        OnnxUnsupported             an ONNX model uses a part of the format that is not taken in
        ConfigInvalid               config.json is malformed, refers to code, or contradicts itself
          ArchitectureUnknown       an architecture that no family covers
        TensorsMismatch             weights are missing, misshapen, or unknown to the architecture
        TokenizerInvalid            a tokenizer file is malformed or refers to code
        PreprocessorInvalid         the settings of the image processor are malformed or refer to code
      FormatNotPrunable             a model of this format can be inspected, but not pruned yet
      DatasetInvalid                a dataset cannot be taken in; names the first bad line
        DatasetEmpty
        DatasetFormatUnknown
      SpecificationInvalid          a job specification with faults, each with its JSON pointer
      TargetUnreachable             found while running: the target cannot be met
      DatasetInsufficient           found while running: too little text for what is asked
      WeightsNotFinite              NaN or infinity among the weights
      CheckpointInvalid             a checkpoint of this job does not fit
      FormatImpossible              the model cannot be written in a format that was asked for
      RecoveryImpossible            the recovery cannot be done with this model or data
      RecoveryDiverged              the loss of a recovery became NaN or infinite
      ArtifactVerificationFailed    the reloaded artifact does not give the evaluated outputs

Every class has a stable `code`; messages say what is wrong, where, and what to do, and never hold an
absolute path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class CompressionError(Exception):
    """Base of all errors of the engine. `message` is for people, `code` for programs, `pointer` says
    where."""

    code: ClassVar[str] = "compression_failed"

    def __init__(self, message: str, *, pointer: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.pointer = pointer

    def to_json(self) -> dict[str, Any]:
        """`{"code", "message"}`, and `"pointer"` where there is one."""
        fact: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.pointer is not None:
            fact["pointer"] = self.pointer
        return fact


class ModelRejected(CompressionError):
    """An uploaded model cannot be taken in; `pointer` is the file it is about, where there is one."""

    code = "model_rejected"


class PickleRefused(ModelRejected):
    """A file that could only be read by unpickling, which would run a stranger's code."""

    code = "pickle_refused"


class FileRefused(ModelRejected):
    """A file with a bad name, of an unknown kind, or too large."""

    code = "file_refused"


class SafetensorsInvalid(ModelRejected):
    """A safetensors file or the index of its shards is malformed."""

    code = "safetensors_invalid"


class OnnxInvalid(ModelRejected):
    """An ONNX file is malformed or contradicts itself; `pointer` is the file and the place in it."""

    code = "onnx_invalid"


class OnnxUnsupported(ModelRejected):
    """An ONNX model uses a part of the format that is not taken in; `pointer` is the file and the place in
    it."""

    code = "onnx_unsupported"


class ConfigInvalid(ModelRejected):
    """config.json is malformed, refers to code, or contradicts itself."""

    code = "config_invalid"


class ArchitectureUnknown(ConfigInvalid):
    """An architecture that no family covers."""

    code = "architecture_unknown"


class TensorsMismatch(ModelRejected):
    """Weights are missing, of the wrong shape or type, or unknown to the architecture."""

    code = "tensors_mismatch"


class TokenizerInvalid(ModelRejected):
    """A tokenizer file is malformed or refers to code."""

    code = "tokenizer_invalid"


class PreprocessorInvalid(ModelRejected):
    """The settings of a model's image processor are malformed or refer to code."""

    code = "preprocessor_invalid"


class FormatNotPrunable(CompressionError):
    """A job or plan for a model whose format can be inspected, but not pruned yet."""

    code = "format_not_prunable"


class DatasetInvalid(CompressionError):
    """A dataset cannot be taken in. `line` is the first bad line (from 1), where there is one."""

    code = "dataset_invalid"

    def __init__(self, message: str, *, pointer: str | None = None, line: int | None = None) -> None:
        super().__init__(message, pointer=pointer)
        self.line = line


class DatasetEmpty(DatasetInvalid):
    """A dataset without a single document."""

    code = "dataset_empty"


class DatasetFormatUnknown(DatasetInvalid):
    """A dataset in a format that is not taken in."""

    code = "dataset_format_unknown"


@dataclass(frozen=True)
class Fault:
    """One fault of a specification: `pointer` is a JSON pointer (RFC 6901) into it, "" for the whole."""

    pointer: str
    message: str
    code: str = "invalid"

    def to_json(self) -> dict[str, str]:
        return {"pointer": self.pointer, "message": self.message, "code": self.code}


class SpecificationInvalid(CompressionError):
    """A job specification that cannot be run; `errors` lists every fault that was found."""

    code = "specification_invalid"

    def __init__(self, errors: Sequence[Fault]) -> None:
        self.errors = list(errors)
        first = self.errors[0] if self.errors else Fault("", "The specification is not valid.")
        more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
        super().__init__(f"{first.pointer or '/'}: {first.message}{more}", pointer=first.pointer)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "errors": [error.to_json() for error in self.errors]}


class TargetUnreachable(CompressionError):
    """The target cannot be met; the message names the reachable range."""

    code = "target_unreachable"


class DatasetInsufficient(CompressionError):
    """Too little text for the samples, the held-out part or the sequence length that are asked for."""

    code = "dataset_insufficient"


class WeightsNotFinite(CompressionError):
    """NaN or infinity among the weights; the message names the first weight."""

    code = "weights_not_finite"


class CheckpointInvalid(CompressionError):
    """A checkpoint of this job is damaged or belongs to another specification."""

    code = "checkpoint_invalid"


class FormatImpossible(CompressionError):
    """The model, or its tokenizer, cannot be written in a format that was asked for."""

    code = "format_impossible"


class RecoveryImpossible(CompressionError):
    """The recovery that is asked for cannot be done with this model or data; says what to ask for instead."""

    code = "recovery_impossible"


class RecoveryDiverged(CompressionError):
    """The loss of a recovery became NaN or infinite; the message names the step."""

    code = "recovery_diverged"


class ArtifactVerificationFailed(CompressionError):
    """The artifact, reloaded by the stock loader, does not give the outputs that were evaluated."""

    code = "artifact_verification_failed"
