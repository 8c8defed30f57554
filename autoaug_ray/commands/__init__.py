"""The words of the command line, a file for each."""
