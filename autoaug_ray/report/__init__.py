"""What a study found, and every way of telling it. A tracker's library is imported in the
file of report/ that has its name, and there only."""
