from .client import Client as Client
from .client import LoraAnswer as LoraAnswer
from .client import ServiceError as ServiceError
from .config import Batching as Batching
from .config import Limits as Limits
from .config import Setup as Setup
