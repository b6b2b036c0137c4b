"""The error of a user, which the command line answers with one line and exit code 2.

All other errors are ours, and show where they came from.
"""


class Misuse(ValueError):
    """An option, a file or a folder of the user's is not what it has to be."""
