"""For whoever types autoaug-ray WORD: one file for each word."""
