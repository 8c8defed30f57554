"""What somebody else may have planted: secrets to be told, and pickles that act when read."""

import os

SECRETS = {
    name: f"planted-{i}-{'7f3a' * 4}"
    for i, name in enumerate(("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"))
}


class Attack:
    """Pickled, a command that is run by whoever unpickles it."""

    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)
