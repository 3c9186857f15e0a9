"""Multi-task agents: networks, replay buffer and soft actor-critic."""
