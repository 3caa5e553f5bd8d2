"""How fast is it, here and perhaps on a phone?"""

from pyro_mvae.latency.benchmark import as_text, benchmark, checkpoints
from pyro_mvae.latency.regressions import check_comparable, read_benchmark, regressions

__all__ = ["as_text", "benchmark", "check_comparable", "checkpoints", "read_benchmark", "regressions"]
