"""Ways of combining per-task gradients, by name.

>>> from mtrl import combiners
>>> combiner = combiners.make("unitary", num_tasks=3)
"""

import inspect
from typing import Any

from mtrl.combiners.aligned_mtl import AlignedMTL
from mtrl.combiners.base import Combiner, Needs
from mtrl.combiners.cagrad import CAGrad
from mtrl.combiners.cdtt import CDTT
from mtrl.combiners.conflict_free import ConflictFree
from mtrl.combiners.db_mtl import DBMTL
from mtrl.combiners.dualproj import DualProj
from mtrl.combiners.dwa import DWA
from mtrl.combiners.edm import EDM
from mtrl.combiners.excess_mtl import ExcessMTL
from mtrl.combiners.fairgrad import FairGrad
from mtrl.combiners.famo import FAMO
from mtrl.combiners.fixed import Fixed
from mtrl.combiners.geometric_mean import GeometricMean
from mtrl.combiners.graddrop import GradDrop
from mtrl.combiners.gradnorm import GradNorm
from mtrl.combiners.gradvac import GradVac
from mtrl.combiners.imtl import Imtl, ImtlG, ImtlL
from mtrl.combiners.mgda import MGDA
from mtrl.combiners.moco import MoCo
from mtrl.combiners.nash_mtl import NashMTL
from mtrl.combiners.pcgrad import PCGrad
from mtrl.combiners.random_weights import RandomGradDrop, RLWDirichlet, RLWNormal
from mtrl.combiners.scale_invariant import ScaleInvariant
from mtrl.combiners.sdmgrad import SDMGrad
from mtrl.combiners.sign_agnostic_drop import SignAgnosticDrop
from mtrl.combiners.stch import STCH
from mtrl.combiners.uncertainty import Uncertainty
from mtrl.combiners.unitary import Unitary
from mtrl.combiners.upgrad import UPGrad
from mtrl.errors import unknown_name

__all__ = ["Combiner", "Needs", "make", "name_of", "names", "options"]

_REGISTRY: dict[str, type[Combiner]] = {
    "unitary": Unitary,
    "fixed": Fixed,
    "random_grad_drop": RandomGradDrop,
    "rlw_normal": RLWNormal,
    "rlw_dirichlet": RLWDirichlet,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "scale_invariant": ScaleInvariant,
    "geometric_mean": GeometricMean,
    "stch": STCH,
    "famo": FAMO,
    "graddrop": GradDrop,
    "sign_agnostic_drop": SignAgnosticDrop,
    "moco": MoCo,
    "db_mtl": DBMTL,
    "excess_mtl": ExcessMTL,
    "imtl_l": ImtlL,
    "imtl_g": ImtlG,
    "imtl": Imtl,
    "gradnorm": GradNorm,
    "mgda": MGDA,
    "edm": EDM,
    "cdtt": CDTT,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "cagrad": CAGrad,
    "nash_mtl": NashMTL,
    "fairgrad": FairGrad,
    "aligned_mtl": AlignedMTL,
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "conflict_free": ConflictFree,
    "sdmgrad": SDMGrad,
}


def names() -> list[str]:
    """Every registered name, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Combiner]:
    """The class registered under a name.

    Raises:
        InputError: if there is none; the message offers the nearest name.
    """
    if name not in _REGISTRY:
        raise unknown_name("combiner", name, _REGISTRY)
    return _REGISTRY[name]


def name_of(cls: type[Combiner]) -> str:
    """The registered name of a class, or the class's own name where it is not registered."""
    return next((name for name, known in _REGISTRY.items() if known is cls), cls.__name__)


def options(name: str) -> dict[str, Any]:
    """The method's own options and their defaults (``num_tasks`` and ``seed`` left out).

    Raises:
        InputError: if the name is unknown.
    """
    found: dict[str, Any] = {}
    for cls in reversed(get(name).__mro__):
        if issubclass(cls, Combiner):
            for parameter in inspect.signature(cls.__init__).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "seed":
                    found[parameter.name] = parameter.default
    return found


def make(name: str, num_tasks: int, seed: int = 0, **options_: Any) -> Combiner:
    """Makes the combiner registered under ``name``.

    Args:
        name: one of `names`.
        num_tasks: the number of tasks T.
        seed: seeds the method's own random generator.
        **options_: the method's own options, see `options`.

    Raises:
        InputError: on an unknown name or option, or an option's value out of range.
    """
    valid = options(name)
    for option in options_:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, valid)
    return get(name)(num_tasks, seed=seed, **options_)
