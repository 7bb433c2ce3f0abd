"""What can go wrong in the trainer on purpose; the message is for the person who typed the command.

TrainerError
├── RecipeError   a recipe is unreadable, has an unknown key, or an impossible value
├── DataError     a file of captions or images is missing, malformed, or contradicts another
│   └── EntryError  one entry of a file cannot be used; the others may
└── ScoringError  candidates and references cannot be compared
"""


class TrainerError(Exception):
    """Anything the trainer raises on purpose: what was expected, what came, what to do."""


class RecipeError(TrainerError):
    """A recipe is unreadable, has an unknown key, or an impossible value."""


class DataError(TrainerError):
    """A file of captions or images is missing, malformed, or contradicts another."""


class EntryError(DataError):
    """One entry of a file cannot be used; the others may.

    Args:
        where: file and place in it.
        what: is wrong, in the same words wherever the same is wrong.
        got: what stands there.
    """

    def __init__(self, where: str, what: str, got: str = "") -> None:
        super().__init__(f"{where}: {what}" + (f", got {got}" if got else ""))
        self.where, self.what, self.got = where, what, got


class ScoringError(TrainerError):
    """Candidates and references cannot be compared."""
