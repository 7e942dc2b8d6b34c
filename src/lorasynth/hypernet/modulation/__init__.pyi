from .ada_norm import AdaNorm as AdaNorm
from .ada_norm import AdaNormConfig as AdaNormConfig
from .ada_norm import ScaleAndShift as ScaleAndShift
from .low_rank import LowRankModulation as LowRankModulation
from .low_rank import LowRankModulationConfig as LowRankModulationConfig
