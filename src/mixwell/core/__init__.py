"""The design itself: batches, draws, mixes, targets, pieces, recipes and turns. No method lives here."""
