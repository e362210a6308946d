"""Classes of other libraries under their own names and arguments, so that a script switches by one import.

from robobench.compat import AutoAttack              # instead of: from autoattack import AutoAttack
import robobench.compat.torchattacks as torchattacks  # instead of: import torchattacks
"""

from robobench.compat.autoattack import AutoAttack

__all__ = ["AutoAttack"]
