"""What can go wrong in the trainer on purpose; the message is for the person who typed the command.

TrainerError
├── DataError     a file of captions or images is missing, malformed, or contradicts another
└── ScoringError  candidates and references cannot be compared
"""


class TrainerError(Exception):
    """Anything the trainer raises on purpose: what was expected, what came, what to do."""


class DataError(TrainerError):
    """A file of captions or images is missing, malformed, or contradicts another."""


class ScoringError(TrainerError):
    """Candidates and references cannot be compared."""
