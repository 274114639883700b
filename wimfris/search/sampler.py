"""How a search draws and prunes trials."""

import warnings

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner, PercentilePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

STARTUP = 6  # trials before TPE has enough to learn from, and before any trial is pruned
BEST = 75.0  # percent of the trials that are not pruned


def make_sampler(kind: str, seed: int, begun: int) -> BaseSampler:
    """Return the sampler of the next trial, given how many trials have finished or are running.

    Its random state depends on the seed and that number alone. So a search that was killed draws the same trials as
    one that was not, and trials that run side by side differ.
    """
    state = int(np.random.SeedSequence([seed, begun]).generate_state(1)[0])
    if kind == "random":
        return RandomSampler(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=state, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)


def make_pruner(epochs: int, prunes: bool) -> BasePruner:
    """Return a pruner that stops a trial at half of its epochs if it is in the worst quarter there.

    Earlier scores say little: high learning rates start behind and end ahead. The trial is compared with completed
    trials only, so that a killed and repeated trial counts once and the search can be reproduced. (Hyperband assigns
    its brackets by trial number, which a kill shifts.)
    """
    if not prunes:
        return NopPruner()
    half = -(-epochs // 2)
    return PercentilePruner(BEST, n_startup_trials=STARTUP, n_warmup_steps=half, interval_steps=epochs)
