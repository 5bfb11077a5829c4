"""Every error that this package raises on purpose, below one base class."""


class ResidualMBRLError(Exception):
    """Base class of all errors raised on purpose by residual_mbrl."""


class LogError(ResidualMBRLError, ValueError):
    """A recorded log cannot be used: the message names the file, the column and the rows."""


class ModelError(ResidualMBRLError, ValueError):
    """A model is put together wrongly: a residual on a port the baseline lacks, no free parameters, a rate mismatch."""


class NotFiniteError(ResidualMBRLError, ValueError):
    """A state, an action or a weight that a computation starts from is NaN or infinite."""


class ArtifactError(ResidualMBRLError, ValueError):
    """A saved calibration cannot be read: truncated, changed, from a newer schema, or made for another plant."""


class OutputError(ResidualMBRLError, OSError):
    """A result could not be written (disk full, no permission); nothing half-written is left behind."""
