"""What can go wrong in the trainer on purpose; the message is for the person who typed the command.

TrainerError
├── RecipeError   a recipe is unreadable, has an unknown key, or an impossible value
├── DataError     a file of captions or images is missing, malformed, or contradicts another
└── ScoringError  candidates and references cannot be compared
"""


class TrainerError(Exception):
    """Anything the trainer raises on purpose: what was expected, what came, what to do."""


class RecipeError(TrainerError):
    """A recipe is unreadable, has an unknown key, or an impossible value."""


class DataError(TrainerError):
    """A file of captions or images is missing, malformed, or contradicts another."""


class ScoringError(TrainerError):
    """Candidates and references cannot be compared."""
