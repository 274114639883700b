"""The peak memory of a piece of work in this process."""

import contextlib
from pathlib import Path

import torch


class Memory:
    """Peak memory above what the process held when this object was made; on a GPU, what torch allocated there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, _status("VmRSS")
        self.restart()

    def restart(self) -> None:
        """Forget the peak."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def peak(self) -> int | None:
        """Return bytes; None where the operating system does not report them."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        most = _status("VmHWM")
        return None if most is None or self.before is None else max(most - self.before, 0)


def _status(key: str) -> int | None:
    """Return a size in /proc/self/status in bytes; None on systems without that file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return 1024 * int(sizes[0]) if sizes else None
