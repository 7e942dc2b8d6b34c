from .families import BASE_MODELS as BASE_MODELS
from .families import BaseFamily as BaseFamily
from .memory import Memory as Memory
from .model import BaseModel as BaseModel
from .sampling import MEASURED as MEASURED
from .sampling import SamplingConfig as SamplingConfig
from .stacked import StackedAdapters as StackedAdapters
from .texts import Texts as Texts
