"""What can go wrong because of what a user gave or asked. Messages say what came, what was expected, what to do."""


class BrainMRIError(Exception):
    """Base of every error this package raises on purpose; its text is fit for a screen."""


class ConfigError(BrainMRIError):
    """A key or value in ``config.yaml`` is unknown or wrong."""


class InvalidImageError(BrainMRIError):
    """Bytes or an array that are no usable image."""


class InvalidDicomError(InvalidImageError):
    """A DICOM file, series or zip that cannot be read or is not an MR image."""


class PacsError(BrainMRIError):
    """Another DICOM node that cannot be reached, refuses, or breaks off."""


class RefusedError(PacsError):
    """Another DICOM node that answers, with a refusal of just this."""


class DataError(BrainMRIError):
    """An image folder, manifest or split that is missing, empty or contradicts itself."""


class ModelError(BrainMRIError):
    """Weights, card or fitted statistics that are missing, corrupt or foreign to each other."""


class EngineError(ModelError):
    """An inference engine or precision that is unknown or does not load."""


class ExplanationError(BrainMRIError):
    """A method, layer or class that does not exist or does not go together."""


class AccountError(BrainMRIError):
    """A sign-up, sign-in or account change that is refused."""


class PermissionDeniedError(BrainMRIError):
    """The signed-in user may not see or do this."""


class StorageError(BrainMRIError):
    """A record or its file could not be written or found; nothing was half stored."""


class BusyError(BrainMRIError):
    """The prediction queue is full; the same request may succeed in a moment."""


class ReportError(BrainMRIError):
    """A report that cannot be issued, signed or verified."""
