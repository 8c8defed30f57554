"""Where rows, checkpoints and costs are kept: a folder, or objects of a store."""
