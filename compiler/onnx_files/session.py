"""Run an .onnx file with onnxruntime on the arguments of a torch call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cause import cause
from ..errors import ExportError, MeasureError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """An onnxruntime session on one device.

    `threads` are onnxruntime's intra-op threads; torch's own number when None, since onnxruntime
    would otherwise choose for itself and a comparison would not be on equal terms.

    Raises:
        MeasureError: this onnxruntime has no execution provider for `device`.
        ExportError: onnxruntime refuses the file.
    """

    def __init__(
        self, path: Path | str, *, device: torch.device | str = "cpu", threads: int | None = None
    ) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise ExportError(f"{path} is no file: check the path, or export it first.")
        self.device = torch.device(device)
        provider = _PROVIDERS.get(self.device.type, "")
        if provider not in onnxruntime.get_available_providers():
            raise MeasureError(
                f"This onnxruntime cannot run on {self.device.type}: install a build that can"
                " (onnxruntime-gpu for CUDA), or ask for device='cpu'."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        # Idle workers spin on the cores that the next session, timed in turn, needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            placed = {"device_id": self.device.index or 0} if self.device.type == "cuda" else {}
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[(provider, placed)]
            )
        except Exception as error:  # onnxruntime's own classes share no public base
            raise ExportError(
                f"onnxruntime cannot load {Path(path).name} ({cause(error)}): export it again."
            ) from error
        # onnxruntime falls back to the CPU with no more than a log line.
        if provider != self._session.get_providers()[0]:
            raise MeasureError(
                f"onnxruntime could not start on {self.device.type} and fell back to the CPU:"
                " check that its CUDA and cuDNN versions match the installed ones."
            )
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def signature(self) -> list[tuple[str, tuple[int | str, ...], str]]:
        """Name, shape (a dynamic axis by its name) and element type of every input."""
        return [(v.name, tuple(v.shape), v.type) for v in self._session.get_inputs()]

    def run(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """The outputs, on the CPU, for the inputs by name; other names are ignored."""
        if any("bfloat16" in value.type for value in self._session.get_outputs()):
            raise ExportError(
                "onnxruntime gives no bfloat16 to Python: convert the model to float32 or float16."
            )
        binding, run = self._bind(tensors)
        run()
        return [torch.from_numpy(value) for value in binding.copy_outputs_to_cpu()]

    def bound(self, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """A call without arguments that runs the session once on inputs already on its device."""
        return self._bind(tensors)[1]

    def _bind(self, tensors: dict[str, Tensor]) -> tuple[Any, Callable[[], None]]:
        import onnxruntime

        missing = [name for name in self.inputs if name not in tensors]
        if missing:
            raise ExportError(
                f"The ONNX file has inputs {missing} that the call does not give: pass the example"
                " inputs with which it was exported."
            )
        place, index = self.device.type, self.device.index or 0
        binding = self._session.io_binding()
        for name in self.inputs:
            array = _array(name, tensors[name])
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, place, index)
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, place, index)

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:
                raise ExportError(
                    f"onnxruntime failed to run ({cause(error)}): give inputs like those of the "
                    "export."
                ) from error

        return binding, run


def _array(name: str, tensor: Tensor) -> Any:
    if tensor.dtype is torch.bfloat16:
        raise ExportError(
            f"onnxruntime takes no bfloat16 from Python (input {name}): convert the model and its"
            " inputs to float32 or float16."
        )
    return tensor.detach().cpu().contiguous().numpy()
