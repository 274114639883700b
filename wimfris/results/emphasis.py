"""The emphasis that runs learned, drawn from the committed evidence."""

from pathlib import Path

import pandas as pd

from wimfris.results import figures


def draw_learned_emphasis(learned: pd.DataFrame, path: Path, scale: str) -> None:
    """Draw alpha by layer and epoch to a PNG, see `figures.emphasis`; `learned` has `evidence.EMPHASIS` as columns."""
    logs = {
        str(run): [
            {"event": "epoch", "epoch": epoch, "emphasis": dict(zip(part["layer"], part["alpha"], strict=True))}
            for epoch, part in rows.groupby("epoch")
        ]
        for run, rows in learned.groupby("run", sort=False)
    }
    figures.emphasis(logs, path, scale)
