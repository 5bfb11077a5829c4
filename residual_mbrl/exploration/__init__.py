"""What to do to a plant so that its data say most."""

from residual_mbrl.exploration.disagreement import disagreement_excitation
from residual_mbrl.exploration.excitation import Excite, random_excitation
from residual_mbrl.exploration.information import (
    InformationOptions,
    expected_error,
    information_excitation,
    information_gain,
)
from residual_mbrl.exploration.veto import Veto

__all__ = ["Excite", "InformationOptions", "Veto", "disagreement_excitation", "expected_error", "information_excitation",
           "information_gain", "random_excitation"]
