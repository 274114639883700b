"""What a search draws, and what it cuts short: with the space, all that decides its trials."""

import warnings

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

STARTUP = 6  # trials drawn at random before TPE has anything to go by, in each of Hyperband's brackets


def make_sampler(kind: str, seed: int, begun: int) -> BaseSampler:
    """The sampler of the next trial: seed and the number of trials that have finished or are running alone decide what
    it draws by chance, so that a search that was killed goes on as if it had not been, and that trials which run side
    by side are not drawn alike.
    """
    number = int(np.random.SeedSequence([seed, begun]).generate_state(1)[0])
    if kind == "random":
        return RandomSampler(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=number, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)


def make_pruner(epochs: int, prunes: bool) -> BasePruner:
    """Hyperband over the second half of a trial's epochs; nothing is pruned where there are several objectives.

    Before its half a trial says little of its end: high learning rates start behind and end ahead. At tiny, of trials
    that were pruned after a third of 120 steps, those were lost whose like came to the best scores.
    """
    if not prunes:
        return NopPruner()
    return HyperbandPruner(min_resource=-(-epochs // 2), max_resource=epochs, reduction_factor=2)
