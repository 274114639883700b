"""Are the rivals fair, and is the recipe steady? Every family gets the same budget of tuning.

A rival at a wrong learning rate looks worse than it is. So each family, `full` included, gets the same trials over the
learning rate and one factor of its own, on split `tune`, which nothing else sees. The best trials are trained again at
full length. Section `tuning` of params.yaml sets how many. Settings that params.yaml adopts name their trial there.
Ablations of `full` keep the settings of `full`.

    python studies/tuning.py --dry-run                  # what would run, and how long it takes
    python studies/tuning.py --families lora,finetune   # tune two families
    python studies/tuning.py --recipe                   # compare candidates for the recipe of scale tiny

A recipe is judged by the cost of a decided comparison: the variance over seeds times the training images.
"""

from wimfris.cli.tuning import main

if __name__ == "__main__":
    main()
