"""The device a job runs on: choosing it, its precision rules and what makes its results repeatable."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import torch

from compression.errors import CompressionError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


class DeviceUnavailable(CompressionError):
    """The job asks for a device that this machine does not have."""

    code = "device_unavailable"


def prepare_device(name: str, threads: int) -> torch.device:
    """Set threads and determinism for this process and give the device.

    `name` is "cpu", "cuda" or "cuda:N". Raises DeviceUnavailable when CUDA is asked for and absent.
    """
    device = torch.device(name)
    if device.type == "cuda":
        # cuBLAS needs a fixed workspace for repeatable sums; it is read when the first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if not torch.cuda.is_available():
            raise DeviceUnavailable(f"device {name!r} is asked for, but this machine offers no CUDA device")
    elif device.type != "cpu":
        raise DeviceUnavailable(f"device {name!r} is not supported; use 'cpu' or 'cuda'")
    torch.set_num_threads(max(1, threads))
    # torch.use_deterministic_algorithms would do, but it imports the compiler to tell it, too.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return device


def give_memory_back() -> None:
    """Return what the C library keeps of freed memory to the system; nothing where it is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def compute_dtype(stored: str | torch.dtype) -> torch.dtype:
    """The dtype a model of this storage dtype is computed in: float16 becomes float32, others stay."""
    dtype = DTYPES[stored] if isinstance(stored, str) else stored
    return torch.float32 if dtype == torch.float16 else dtype


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except FileNotFoundError:
        pass
    return platform.processor() or platform.machine()


def describe_device(device: torch.device) -> dict[str, str | int]:
    """Name and software of the device, as the report states them."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = cpu_name()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
