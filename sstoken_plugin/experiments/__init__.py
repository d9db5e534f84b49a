"""Does token selection help on these data? Arms trained alike, seeds, held-out evaluations, and a page that answers."""
