"""What is raised when a linear system has no trustworthy solution."""


class SingularSystemError(ArithmeticError):
    """The matrix is singular, exactly or to working precision."""
