"""For whoever asks what a study found: one results object, and every way of telling it."""
