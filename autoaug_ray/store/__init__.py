"""For whoever asks where a study's results, checkpoints and costs are kept: files, or objects of a store."""
