"""What every rule is held to: random cases, exact evaluation, and proofs."""

from .cases import Fault, certify
from .certificate import STATUSES, Certificate, examine

__all__ = ["STATUSES", "Certificate", "Fault", "certify", "examine"]
