"""The one error of this package."""


class ConfigError(Exception):
    """The configuration cannot be used: a usage error, exit code 2. The text is for the operator."""

    def __init__(self, file: str, path: str, problem: str) -> None:
        super().__init__(f"{file}: {path}: {problem}" if path else f"{file}: {problem}")
        self.file = file
        self.path = path
        self.problem = problem
