"""What a study found, and every way of telling it. wandb is imported in report/wandb.py only."""
