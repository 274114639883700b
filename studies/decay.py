"""How far does the text token reach inside a scan, and does a window keep it in reach?

Question: by how much does the influence of the text token on the Mamba block's output fall from position to position,
in trained and untrained scans, at each window size?

The paper argues (method.md, section 4) that in a stable state-space model it falls geometrically, by at least
lambda = max exp(Delta A) a token, and that a window is good because it bounds the distance; it measures nothing. A
reviewer asked for the measured decay at each window size.

    python studies/decay.py                  # one to two minutes on a core once the runs are there

What is measured: the Frobenius norm of d y_t / d text, y the block's output before gate and residual, the text token as
the block sees it (normalised), on validation images; `untrained` is the model that a run of the same seed starts from.
The causal convolution shows the text to the three positions behind it directly, so a rate is fitted from position 4 on,
over the geometric mean of the norms; a window of 2 or less has too few positions for that. No window is one sequence
over the whole grid.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wimfris.cli.study import REPORTS, Found, main, write_report
from wimfris.data.index import read_index
from wimfris.data.source import source_images
from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.inference.predict import Predictor
from wimfris.measure.text_reach import block_inputs, curve, directions, fit_rate, fusion_of, text_reach, untrained
from wimfris.results.comparison import Row, Study
from wimfris.results.figures import saved_figure
from wimfris.results.formats import Section, csv_text
from wimfris.results.published import built_in_note
from wimfris.settings.params import Settings

STUDY = Study(
    name="decay",
    title="Decay of the text token",
    question="How far does the text token reach inside a scan, at each window size, trained and untrained?",
    paper="A bound: what the text adds at position t decays like lambda^t, lambda = max exp(Delta A); a window bounds "
    "t. Nothing is measured.",
    rows=(
        Row("window 1", "window_1"),
        Row("window 2", "window_2"),
        Row("window 4", "full"),
        Row("no window", "no_window"),
    ),
)
SPLIT = "val"
IMAGES, SEQUENCES = 64, 128  # images looked at; of their windows as many
PROBES = 64  # directions: all of them at scale tiny
SCANS = ("untrained", "trained")


def measure(settings: Settings, run: str, scan: str, rows: pd.DataFrame, images: Path) -> pd.DataFrame:
    """The curve of a run's trained or untrained scan, a row a position, with what is fitted to it (`summarise`)."""
    variant, _, seed = run.rpartition("-")
    segmenter = untrained(settings, int(seed)) if scan == "untrained" else Predictor.load(settings, run).segmenter
    mamba = fusion_of(segmenter).mamba
    assert mamba is not None
    x = block_inputs(segmenter, settings, rows, images, IMAGES, SEQUENCES)
    reach = text_reach(mamba, x, directions(x.shape[-1], PROBES))
    kernel = mamba.conv1d.kernel_size[0]
    fit = fit_rate(reach.norms.numpy(), kernel)
    rates = np.quantile(fit.rates, [0.05, 0.95]) if fit else (np.nan, np.nan)
    return curve(
        reach,
        variant=variant,
        scan=scan,
        seed=int(seed),
        sequences=len(x),
        first_norm=float(reach.norms[:, 1].log().mean().exp()),
        rate=fit.rate if fit else np.nan,
        rate_low=rates[0],
        rate_high=rates[1],
        explained=fit.explained if fit else np.nan,
        half=fit.half if fit else np.nan,
        fitted_from=kernel,
        bound_rate=float(reach.rate.median()),
    )


def summarise(curves: pd.DataFrame) -> pd.DataFrame:
    """A row a variant, scan and seed: the last position's share of the first (and its 5% and 95% quantile over
    sequences), how many times larger the bound is there, and what `measure` fitted.
    """
    last = curves.loc[curves.groupby(["variant", "scan", "seed"], sort=False)["t"].idxmax()]
    last = last.rename(columns={"t": "tokens", "share": "last_share", "low": "last_low", "high": "last_high"})
    return last.assign(bound_over_last=last["bound"] / last["last_share"]).drop(columns="bound").reset_index(drop=True)


def section(summary: pd.DataFrame, names: Mapping[str, str], of: str, note: str) -> Section:
    """The table as it is shown: means over seeds, their range in brackets."""
    rows = []
    for (variant, scan), part in summary.groupby(["variant", "scan"], sort=False):
        rows.append(
            {
                "window": names[str(variant)],
                "scan": str(scan),
                "seeds": ", ".join(map(str, part["seed"])),
                "sequences": str(part["sequences"].iloc[0]),
                "tokens": str(part["tokens"].iloc[0]),
                "last / first": _told(100 * part["last_share"], "{:.3g}%"),
                "rate a token": _told(part["rate"], "{:.3f}"),
                "5 to 95% of sequences": _told(part["rate_low"], "{:.3f}", False, part["rate_high"]),
                "R²": _told(part["explained"], "{:.2f}", False),
                "half after": _told(part["half"], "{:.1f}"),
                "bound's rate": _told(part["bound_rate"], "{:.4f}"),
                "bound / measured, last": _told(part["bound_over_last"], "{:.2g}", False),
            }
        )
    cells = pd.DataFrame(rows)
    return Section(f"{STUDY.title}: {of}", note, cells, left=("window", "scan"))


def _told(values: pd.Series, form: str, spread: bool = True, upto: pd.Series | None = None) -> str:
    """The mean over seeds in this form, their range in brackets; empty where nothing could be fitted."""
    if values.isna().all():
        return ""
    told = form.format(values.mean())
    if upto is not None:
        return f"{told} to {form.format(upto.mean())}"
    return f"{told} [{form.format(values.min())}, {form.format(values.max())}]" if spread and len(values) > 1 else told


def draw(curves: pd.DataFrame, names: Mapping[str, str], path: Path) -> None:
    """Draw the norms against t to a PNG, a panel a scan, a colour a window size: lines the geometric means of the
    seeds, bands the 5 to 95% range of sequences, dashed the bound; all relative to the norm at t = 1.
    """
    scans = [scan for scan in SCANS if (curves["scan"] == scan).any()]
    variants = [variant for variant in names if (curves["variant"] == variant).any()]
    colours = dict(zip(variants, sns.color_palette("colorblind", len(variants)), strict=True))
    with saved_figure(path, (7.2, 3.6)) as figure:
        axes = figure.subplots(1, len(scans), sharey=True, sharex=True, squeeze=False)[0]
        for axis, scan in zip(axes, scans, strict=True):
            axis.axvspan(0.5, curves["fitted_from"].iloc[0] - 0.5, color="0.95", zorder=0, linewidth=0)
            for variant in reversed(variants):  # what is short lies above
                part = curves[(curves["variant"] == variant) & (curves["scan"] == scan)]
                if part.empty:
                    continue
                mean = np.exp(np.log(part.set_index("t")[["share", "low", "high", "bound"]]).groupby("t").mean())
                marker = "o" if len(mean) < 5 else None
                axis.fill_between(
                    mean.index, mean["low"], mean["high"], color=colours[variant], alpha=0.15, linewidth=0
                )
                for _, of_seed in part.groupby("seed"):
                    line = {"color": colours[variant], "linewidth": 1.2, "marker": marker, "markersize": 3}
                    axis.plot(of_seed["t"], of_seed["share"], **line)
                axis.plot(mean.index, mean["bound"], color=colours[variant], linewidth=1, linestyle="--")
            axis.set(yscale="log", title=scan, xlabel="position t after the text token")
        axes[0].set_ylabel(r"$\|\partial y_t / \partial\,\mathrm{text}\|$, relative to t = 1")
        lowest, highest = curves["low"].min(), max(curves["bound"].max(), curves["high"].max())
        axes[0].set_ylim(lowest / 2, highest * 2)
        handles: list[Artist] = [Line2D([], [], color=colours[variant], label=names[variant]) for variant in variants]
        handles.append(Line2D([], [], color="0.3", linestyle="--", label="bound"))
        handles.append(Patch(color="0.95", label="seen by the convolution"))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.4, columnspacing=1
        )


def report(found: Found) -> None:
    """Measure the runs that left weights, and what all of them start from; write table, curves and picture."""
    settings = found.settings
    index = read_index(settings.folder / "index" / "index.parquet")
    rows, images = index[index["split"] == SPLIT], source_images(settings)
    of_runs = {run: found.params.settings_of(run) for run in found.runs}
    trained = [run for run in found.runs if (of_runs[run].outs / "weights" / f"{run}.safetensors").is_file()]
    if not trained:
        raise UserError(f"{settings.outs / 'weights'}: no weights of {', '.join(found.runs)}; train with `dvc repro`")
    names = {row.variant: row.label for row in found.study.rows}
    curves = pd.concat(
        [
            measure(of_runs[run], run, scan, rows, images)
            for run in sorted(found.runs, key=lambda run: list(names).index(of_runs[run].variant))
            for scan in SCANS
            if scan == "untrained" or run in trained
        ],
        ignore_index=True,
    )
    summary = summarise(curves)
    lacking = [run for run in found.runs if run not in trained]
    of = f"{settings.data.name}, scale {settings.scale}, split {SPLIT}"
    note = (
        "Means over seeds, in brackets the range of seeds. last / first: the norm at the window's last token over that "
        "at its first. The rate is fitted to log norm from position "
        f"{summary['fitted_from'].iloc[0]} to the last, where the text is in the state alone; half after: tokens over "
        "which that rate halves the norm. The bound's rate is lambda = max exp(Delta A), the median over sequences."
    )
    note += f" No weights of {', '.join(lacking)}." if lacking else ""
    shown = section(summary, names, of, note + built_in_note(settings.data.name, settings.scale))
    folder = settings.folder.name
    write_text(REPORTS / "tables" / folder / f"{STUDY.name}-curves.csv", csv_text(curves))
    intro = f"**Question.** {STUDY.question}\n\n**The paper.** {STUDY.paper}"

    def picture(path: Path) -> None:
        draw(curves, names, path)

    write_report(folder, STUDY.name, STUDY.title, [shown], summary, picture, intro)


if __name__ == "__main__":
    main(STUDY, report=report)
