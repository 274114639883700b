"""`wimfris measure decay`: how far the text token reaches in the scans of trained and untrained runs.

It takes the derivatives of `wimfris.measure.text_reach` on validation images, at every window size. `untrained` is the
model that a run of the same seed starts from.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import default_collate

from wimfris.data.dataset import Case, ReferDataset, to_device
from wimfris.data.index import read_index
from wimfris.data.source import source_images
from wimfris.encoders.load import load_tokenizer
from wimfris.inference.predict import Predictor
from wimfris.measure.text_reach import Reach, directions, fit_rate, text_reach
from wimfris.model.hmf import Neck, WindowMambaFusion
from wimfris.model.mamba import Mamba
from wimfris.model.mamba2 import Mamba2
from wimfris.model.segmenter import Segmenter
from wimfris.model.windows import window_index
from wimfris.results.measured import write_measure
from wimfris.runs.files import RunFiles
from wimfris.settings.params import Params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter

VARIANTS = ("window_1", "window_2", "full", "no_window")
BEYOND = ("mixing_ssd",)  # measured where they are trained
SPLIT = "val"
IMAGES, SEQUENCES = 64, 128  # images that are read, and at most so many of their windows
PROBES = 64  # directions of differentiation: all of them up to scale tiny
BATCH = 32  # images at a time


def measure_decay(params: Params) -> None:
    """Write reports/measures/<set>-<scale>/decay.csv and decay-curves.csv.

    Runs without weights are left out; the rows name their seeds. Raises UserError where one of `VARIANTS` has no run.
    """
    settings = params.settings()
    index = read_index(settings.folder / "index" / "index.parquet")
    rows, images = index[index["split"] == SPLIT], source_images(settings)
    summaries, curves = [], []
    for variant in (*VARIANTS, *BEYOND):
        if variant in BEYOND and variant not in params.all_variants:
            continue
        settings = params.settings(variant)
        runs = params.runs_of(variant)
        trained_runs = [run for run in runs if RunFiles(settings.outs / str(run)).weights.is_file()]
        for run in trained_runs or (runs[:1] if variant in VARIANTS else ()):  # loading says which run is missing
            trained = Predictor.load(settings, str(run)).segmenter
            for scan, segmenter in (("untrained", untrained(settings, run.seed)), ("trained", trained)):
                x = block_inputs(segmenter, settings, rows, images, IMAGES, SEQUENCES)
                key: dict[str, Any] = {"variant": variant, "scan": scan, "seed": run.seed}
                row, curve = measure_scan(segmenter, x)
                summaries.append(key | row)
                curves.append(curve.assign(**key)[[*key, *curve.columns]])
    write_measure(pd.DataFrame(summaries), params.settings(), "decay.csv")
    write_measure(pd.concat(curves, ignore_index=True), params.settings(), "decay-curves.csv")


def measure_scan(segmenter: Segmenter, x: Tensor) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure the neck's scan on sequences x (n, L, C): one row of decay.csv, and its curve, see `reach_curve`.

    The row holds sequences; first_norm, the geometric mean of the norm at t = 1; what `fit_rate` fits from position
    fitted_from on: rate, its 5% and 95% quantile over sequences, explained, half; bound_rate, the median of lambda;
    tokens L - 1; the curve's last share, low and high; and bound_over_last, the bound there over the share.
    """
    mamba = fusion_of(segmenter).mamba
    assert mamba is not None
    reach = text_reach(mamba, x, directions(x.shape[-1], PROBES))
    kernel = mamba.conv1d.kernel_size[0]
    fit = fit_rate(reach.norms.numpy(), kernel)
    rates = np.quantile(fit.rates, [0.05, 0.95]) if fit else (np.nan, np.nan)
    curve = reach_curve(reach)
    last = curve.iloc[-1]
    row = {
        "sequences": len(x),
        "first_norm": float(reach.norms[:, 1].log().mean().exp()),
        "rate": fit.rate if fit else np.nan,
        "rate_low": rates[0],
        "rate_high": rates[1],
        "explained": fit.explained if fit else np.nan,
        "half": fit.half if fit else np.nan,
        "fitted_from": kernel,
        "bound_rate": float(reach.rate.median()),
        "tokens": int(last["t"]),
        "last_share": last["share"],
        "last_low": last["low"],
        "last_high": last["high"],
        "bound_over_last": last["bound"] / last["share"],
    }
    return row, curve


def reach_curve(reach: Reach) -> pd.DataFrame:
    """Return a row a position t >= 1: share, low and high are the geometric mean and the 5% and 95% quantile of the
    norm over sequences, bound is the geometric mean of the bound; all relative to the norm at t = 1.
    """
    norms, bound = reach.norms.numpy(), reach.bound.numpy()
    share, above = norms[:, 1:] / norms[:, 1:2], bound[:, 1:] / norms[:, 1:2]
    low, high = np.quantile(share, [0.05, 0.95], axis=0)
    columns = {"t": np.arange(1, norms.shape[1]), "share": np.exp(np.log(share).mean(axis=0)), "low": low, "high": high}
    return pd.DataFrame(columns | {"bound": np.exp(np.log(above).mean(axis=0))})


def untrained(settings: Settings, seed: int) -> Segmenter:
    """Return the model that a run of this seed starts from."""
    torch.manual_seed(seed)
    return build_segmenter(settings, load_tokenizer(settings)).eval()


def fusion_of(segmenter: Segmenter) -> WindowMambaFusion:
    """Return the neck's window-Mamba fusion.

    Raises ValueError where no Mamba block reads the text token first, or where several windows share the channels.
    """
    fusion = segmenter.neck.fusion if isinstance(segmenter.neck, Neck) else None
    if fusion is None or not isinstance(fusion.mamba, Mamba | Mamba2) or fusion.text_token != "first":
        raise ValueError("the neck has no scan with the text token first, in one window")
    return fusion


@torch.no_grad()
def block_inputs(
    segmenter: Segmenter, settings: Settings, rows: pd.DataFrame, images: Path, count: int, most: int
) -> Tensor:
    """Return sequences (n, M + 1, C) that the neck's Mamba block reads, M the tokens of a window, n at most `most`.

    Where there are several scans or passes, this is the forward scan of the first pass. The sequences come from `count`
    images, evenly spread over these index rows, with the first sentence of one object each. Border windows with padding
    are left out; the others are drawn with a fixed seed.
    """
    fusion = fusion_of(segmenter)
    assert fusion.mamba is not None
    objects = rows.drop_duplicates("image_id").reset_index(drop=True)
    spread = np.unique(np.linspace(0, len(objects) - 1, min(count, len(objects))).round().astype(int))
    cases = [Case(int(row), 0, objects["sentences"].iloc[row][0]) for row in spread]
    size = settings.data.image_size
    dataset = ReferDataset(objects, cases, images, load_tokenizer(settings), size, with_mask=False)
    read: list[Tensor] = []
    calls: list[Tensor] = []
    hook = fusion.mamba.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    try:
        for first in range(0, len(dataset), BATCH):
            items = [dataset[k] for k in range(first, min(first + BATCH, len(dataset)))]
            calls.clear()
            batch = to_device(default_collate(items), torch.device("cpu"))
            segmenter(batch["image"], batch["token_ids"])
            read.append(calls[0])
    finally:
        hook.remove()
    sequences = torch.cat(read)
    side = fusion.windows[0] or settings.grid
    whole = (window_index(settings.grid, settings.grid, (side, side))[0] >= 0).all(dim=1)
    sequences = sequences[whole.repeat(len(sequences) // len(whole))]
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
    return sequences[order[:most].sort().values]
