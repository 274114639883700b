"""Which settings does a search pick: the window, the layers that hold adapters, the weights of the losses?

The paper picks window, kernels, widths, placement and loss weights by hand; its reviewers asked for "a principled,
possibly automated policy for placement" and whether "the optimal window size [is] truly dataset dependent".

    python studies/search.py                                 # params.yaml's space and trials; --dry-run says how long
    python studies/search.py --space placement --trials 30   # the layers, at the trained parameters of `full`
    python studies/search.py --space planted --trials 30     # compare it with chance: --sampler random
    python studies/search.py --space all --against parameters

A trial is an ordinary run of a shorter training (params.yaml: search.train) from one seed. The search selects by mIoU
on val, so a good trial may be luck: `wimfris promote TRIAL --as NAME` makes it a variant, which the matrix trains whole
from fresh seeds.
"""

from wimfris.cli.search import main

if __name__ == "__main__":
    main()
