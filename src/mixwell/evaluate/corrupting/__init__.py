"""The fifteen common corruptions, their constants and their random numbers; `mixwell.evaluate.corrupt()` runs them."""
