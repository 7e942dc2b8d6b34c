"""stub"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Reading:
    program: str = ""
    whole: bool = True
def readings(found):
    return ()
