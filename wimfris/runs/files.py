"""The files that a run leaves, all in one folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """The files of a finished run in `folder`, runs/<data set>-<scale>/<group>/<run>."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The trained weights of the best epoch; the frozen encoders are not copied."""
        return self.folder / "weights.safetensors"

    @property
    def records(self) -> Path:
        """One row per evaluated sentence, see `wimfris.runs.records`."""
        return self.folder / "records.parquet"

    @property
    def masks(self) -> Path:
        """The predicted masks of the first evaluation split, see `wimfris.runs.masks`."""
        return self.folder / "masks.parquet"

    @property
    def log(self) -> Path:
        """One JSON object per logged step and epoch, see `wimfris.runs.log`."""
        return self.folder / "log.jsonl"

    @property
    def epochs(self) -> Path:
        """Loss and validation scores by epoch, which `dvc plots show` draws."""
        return self.folder / "epochs.csv"

    @property
    def metrics(self) -> Path:
        """mIoU, oIoU and precisions by split and condition."""
        return self.folder / "metrics.json"

    @property
    def manifest(self) -> Path:
        """What the run was made from, and where, see `wimfris.runs.manifest`."""
        return self.folder / "manifest.json"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file of a finished run."""
        return self.weights, self.records, self.masks, self.log, self.epochs, self.metrics, self.manifest
