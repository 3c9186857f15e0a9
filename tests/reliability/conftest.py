"""The size of the suite: in ``make soak`` it runs under the hypothesis profile ``soak``, everything more often."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "soak",
    max_examples=10_000,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
