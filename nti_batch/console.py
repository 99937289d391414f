"""Rich's console on standard error."""

from rich.console import Console


class ErrorConsole(Console):
    """Goes quiet once nobody reads it; Rich's own console ends the process then."""

    def __init__(self) -> None:
        """Take the present standard error."""
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
