"""Time, cost, chance and traces: what lets a host's run be timed, repeated and compared."""
